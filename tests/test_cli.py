"""The commands as a user has them: in a terminal, in a pipe, with wrong arguments. Few processes, since each of them imports torch."""
import json, os, re, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
env = {k: v for k, v in os.environ.items() if k != 'COLUMNS'} | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1', MPLBACKEND='agg', HF_HUB_OFFLINE='1', TERM='xterm')

def rows_of(run): return len((run/'history.csv').read_text().splitlines())-1

@pytest.fixture(scope='module')
def command(tmp_path_factory):
    "The command line of a command: a script like the one that an installation makes, so that the tests need none"
    bin = tmp_path_factory.mktemp('bin')
    def f(name, *args):
        (bin/name).write_text(f'import sys\nfrom nntrain.cli import {name}\nif __name__ == "__main__": sys.exit({name}())\n')
        return [sys.executable, str(bin/name), *map(str, args)]
    return f

@pytest.fixture(scope='module')
def call(command): return lambda cwd, name, *args: subprocess.run(command(name, *args), cwd=cwd, env=env, capture_output=True, text=True, timeout=240)

@pytest.fixture(scope='module')
def folder(tmp_path_factory, call):
    "A folder with a run in it, made through a pipe; and what was printed"
    tmp = tmp_path_factory.mktemp('cli')
    return tmp, call(tmp, 'nntrain_train', '--epochs', 3, '--one_cycle', '--early_stop', 2, '--amp')

def test_pipe(folder):
    "No bars, no control characters: a line for each pass, and where the results are"
    tmp, res = folder
    assert res.returncode == 0, res.stderr
    assert res.stderr == ''
    assert '\r' not in res.stdout and '\x1b' not in res.stdout and '█' not in res.stdout
    rows = res.stdout.splitlines()[:7]
    assert rows[0].split() == ['epoch', 'mode', 'loss', 'accuracy'] and [r.split()[:2] for r in rows[1:]] == [[str(e), m] for e in range(3) for m in ('train', 'eval')]
    assert 'validation accuracy 0.' in res.stdout
    run = tmp/'runs/digits-mlp'
    assert sorted(p.name for p in run.iterdir()) == ['config.json', 'history.csv', 'losses.png', 'sample.png', 'weights.pt']
    config = json.loads((run/'config.json').read_text())
    assert config['classes'] == [str(i) for i in range(10)] and config['one_cycle'] is True and config['early_stop'] == 2 and config['amp'] is True
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
    for name, args, why in (('nntrain_train', ['--resume', '--out', 'none'], '--resume: there is no interrupted run'), ('nntrain_lr_find', ['--opt', 'magic'], '--opt must be one of sgd, adam, adamw'),
                            ('nntrain_predict', ['runs'], 'IMAGE')):
        res = call(tmp, name, *args)
        assert res.returncode == 2 and res.stdout == ''
        assert len(res.stderr.splitlines()) == 1 and res.stderr.startswith(f'{name}: ') and why in res.stderr
    assert sorted(tmp.rglob('*')) == before

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
