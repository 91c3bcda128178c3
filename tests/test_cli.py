"""The commands as a user has them: in a terminal, in a pipe, with wrong arguments. Few processes, since each of them imports torch."""
import json, os, re, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
env = {k: v for k, v in os.environ.items() if k != 'COLUMNS'} | dict(
    PYTHONPATH=str(root), OMP_NUM_THREADS='1', MPLBACKEND='agg', HF_HUB_OFFLINE='1', TERM='xterm')
results = ['config.json', 'history.csv', 'losses.png', 'sample.png', 'weights.pt']

def rows_of(run): return len((run/'history.csv').read_text().splitlines())-1

@pytest.fixture(scope='module')
def command(tmp_path_factory):
    "The command line of a command: a script like the one that an installation makes, so that the tests need none"
    bin = tmp_path_factory.mktemp('bin')
    def f(name, *args):
        code = f'import sys\nfrom nntrain.cli import {name}\nif __name__ == "__main__": sys.exit({name}())\n'
        (bin/name).write_text(code)
        return [sys.executable, str(bin/name), *map(str, args)]
    return f

@pytest.fixture(scope='module')
def call(command):
    def f(cwd, name, *args, **more):
        return subprocess.run(command(name, *args), cwd=cwd, env=env | more, capture_output=True, text=True, timeout=240)
    return f

@pytest.fixture(scope='module')
def folder(tmp_path_factory, call):
    "A folder with a run in it, made through a pipe; and what was printed"
    tmp = tmp_path_factory.mktemp('cli')
    return tmp, call(tmp, 'nntrain_train', '--epochs', 3, '--one_cycle', '--early-stop', 2, '--amp')

def test_pipe(folder):
    "No bars, no control characters: a line for each pass, and where the results are"
    tmp, res = folder
    assert res.returncode == 0, res.stderr
    assert res.stderr == ''
    assert '\r' not in res.stdout and '\x1b' not in res.stdout and '█' not in res.stdout
    head, *rows = res.stdout.splitlines()[:7]
    assert head.split() == ['epoch', 'mode', 'loss', 'accuracy']
    assert [r.split()[:2] for r in rows] == [[str(e), m] for e in range(3) for m in ('train', 'eval')]
    assert 'validation accuracy 0.' in res.stdout
    run = tmp/'runs/digits-mlp'
    assert sorted(p.name for p in run.iterdir()) == results
    config = json.loads((run/'config.json').read_text())
    assert config['classes'] == [str(i) for i in range(10)]
    assert (config['one_cycle'], config['early_stop'], config['amp']) == (True, 2, True)
    assert config['transform'] == dict(mode='L', size=[8, 8], range=[0, 1])
    assert rows_of(run) == 6

def test_what_is_printed_works(folder, call):
    "The first hint, as it stands; afterwards the run is finished"
    tmp, res = folder
    hint = re.search(r'^  \S*(nntrain_predict) (\S+) (\S+)$', res.stdout, re.M)
    res = call(tmp, *hint.groups())
    assert res.returncode == 0 and res.stdout.startswith('runs/digits-mlp/sample.png\t'), res.stderr
    res = call(tmp, 'nntrain_train', '--resume')
    assert res.returncode == 2 and 'is finished' in res.stderr

def test_predict_pipe(folder, call):
    "A line for each picture with tabs between, errors apart, and a status that tells"
    from nntrain.core import get_dataset
    tmp, _ = folder
    dd = get_dataset('digits')
    for i in range(3): dd['test'][i]['image'].save(tmp/f'img {i}.png')
    res = call(tmp, 'nntrain_predict', 'runs/digits-mlp/weights.pt', 'img 0.png', 'none.png', 'img 1.png', 'img 2.png')
    assert res.returncode == 1
    lines = [l.split('\t') for l in res.stdout.splitlines()]
    assert [l[0] for l in lines] == ['img 0.png', 'img 1.png', 'img 2.png']
    assert all(re.fullmatch(r'\d', l[1]) and 0 <= float(l[2]) <= 1 for l in lines)
    assert res.stderr.splitlines() == ["nntrain_predict: there is no file 'none.png'"]

def test_wrong_arguments(folder, call):
    "One line, status 2, nothing written"
    tmp, _ = folder
    before = sorted(tmp.rglob('*'))
    for name, args, why in (('nntrain_train', ['--resume', '--out', 'none'], '--resume: there is no interrupted run'),
                            ('nntrain_train', ['--batch-size', 'x'], "--batch-size: invalid int value: 'x'"),
                            ('nntrain_train', ['--out', 'runs/digits-mlp'], 'results of an earlier run'),
                            ('nntrain_lr_find', ['--opt', 'magic'], "--opt must be 'sgd', 'adam' or 'adamw'"),
                            ('nntrain_predict', ['runs'], 'IMAGES')):
        res = call(tmp, name, *args)
        assert res.returncode == 2 and res.stdout == ''
        assert len(res.stderr.splitlines()) == 1 and res.stderr.startswith(f'{name}: ') and why in res.stderr
    assert sorted(tmp.rglob('*')) == before

def test_files_of_others_stay(tmp_path, call):
    "A run removes the checkpoints that it wrote and nothing else, even where its folder for them is a link"
    (tmp_path/'precious').mkdir()
    for name in ('notes.txt', 'resnet.pt'): (tmp_path/'precious'/name).write_text('three weeks of work')
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'checkpoints').symlink_to(tmp_path/'precious')
    res = call(tmp_path, 'nntrain_train', '--epochs', 1, '--out', 'run')
    assert res.returncode == 0, res.stderr
    assert {p.read_text() for p in (tmp_path/'precious').rglob('*') if p.name in ('notes.txt', 'resnet.pt')} == {'three weeks of work'}
    assert [p.name for p in (tmp_path/'precious').rglob('*.pt')] == ['resnet.pt'] and (tmp_path/'precious'/'notes.txt').exists()
    assert sorted(p.name for p in (tmp_path/'run').iterdir()) == ['checkpoints', *results]

@pytest.mark.skipif(not os.environ.get('NNTRAIN_FASTCORE2'), reason="needs NNTRAIN_FASTCORE2, a folder made by: pip install --target FOLDER --no-deps 'fastcore>=2'")
def test_with_fastcore_2(tmp_path, call):
    "Users get fastcore 2, the tools need fastcore 1: with both, the help is the same and options may have hyphens or underscores"
    two = dict(PYTHONPATH=os.pathsep.join([os.environ['NNTRAIN_FASTCORE2'], str(root)]))
    assert subprocess.run([sys.executable, '-c', 'import fastcore; print(fastcore.__version__)'], env=env | two, capture_output=True, text=True).stdout.startswith('2.')
    for name in ('nntrain_train', 'nntrain_lr_find', 'nntrain_predict'):
        assert call(tmp_path, name, '--help').stdout == call(tmp_path, name, '--help', **two).stdout
    for i, args in enumerate((['--batch_size', 32, '--one_cycle', '--early_stop', 2], ['--batch-size', 32, '--one-cycle', '--early-stop', 2])):
        res = call(tmp_path, 'nntrain_train', '--epochs', 1, '--out', f'run{i}', *args, **two)
        assert res.returncode == 0 and rows_of(tmp_path/f'run{i}') == 2, res.stderr

def test_terminal(tmp_path, command):
    "In a terminal there is a bar that moves, and the rows of the table stay; Ctrl-C ends it tidily, and it can be resumed"
    import pty, select, signal, time
    def start(*args):
        cmd = command('nntrain_train', '--out', 'run', *args)
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(tmp_path)
            os.execve(cmd[0], cmd, env)
        return pid, fd
    def read(fd, until=None):
        out, end = b'', time.monotonic()+240
        while time.monotonic() < end and not (until and re.search(until, out)):
            if not select.select([fd], [], [], 1)[0]: continue
            try: b = os.read(fd, 65536)
            except OSError: break # the other end is closed
            if not b: break
            out += b
        return out
    pid, fd = start('--epochs', '400')
    out = read(fd, rb'[\r\n] +3 +train')
    assert b'\xe2\x96\x88' in out or b'|' in out # the bar
    assert re.search(rb'epoch +mode +loss +accuracy', out)
    os.kill(pid, signal.SIGINT)
    out = read(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert b'Interrupted. ' in out and b'--resume' in out and b'Traceback' not in out
    os.close(fd)
    rows = rows_of(tmp_path/'run')
    pid, fd = start('--epochs', '400', '--resume')
    out = read(fd, b'Resumed from')
    os.kill(pid, signal.SIGINT)
    read(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert rows_of(tmp_path/'run') >= rows
    os.close(fd)
