"""The commands as a user has them: with arguments, in a folder, in a pipe. Most run in this process, since another one has to load PyTorch first."""
import json, os, re, subprocess, sys, time, warnings
from pathlib import Path

import pytest

from nntrain import cli

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
def process(command):
    "Run a command in a process of its own, through pipes"
    def f(cwd, name, *args, **more):
        return subprocess.run(command(name, *args), cwd=cwd, env=env | more, capture_output=True, text=True, timeout=240)
    return f

@pytest.fixture
def call(capsys, monkeypatch):
    "Run a command as a program does, but in this process: its output, what it said on standard error, and its status"
    kept = warnings.formatwarning
    def f(cwd, name, *args):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, 'argv', [f'/usr/bin/{name}', *map(str, args)])
        capsys.readouterr()
        try: status = getattr(cli, name)() or 0
        except SystemExit as e: status = e.code or 0
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, status, out, err)
    yield f
    warnings.formatwarning = kept

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder with a run in it"
    tmp, here = tmp_path_factory.mktemp('cli'), os.getcwd()
    os.chdir(tmp)
    try: cli.nntrain_train(epochs=3, one_cycle=True, early_stop=2, amp=True)
    finally: os.chdir(here)
    return tmp

def test_the_folder_describes_itself(folder):
    run = folder/'runs/digits-mlp'
    assert sorted(p.name for p in run.iterdir()) == results
    config = json.loads((run/'config.json').read_text())
    assert config['classes'] == [str(i) for i in range(10)]
    assert (config['one_cycle'], config['early_stop'], config['amp'], config['passes']) == (True, 2, True, 6)
    assert {k: config['transform'][k] for k in ('mode', 'size', 'range')} == dict(mode='L', size=[8, 8], range=[0, 1])
    assert rows_of(run) == 6

def test_what_is_printed_works(tmp_path, call):
    "A row for each epoch; the first hint, as it stands; afterwards the run is finished"
    res = call(tmp_path, 'nntrain_train', 'digits', '--epochs', 2)
    assert (res.returncode, res.stderr) == (0, '')
    assert '\r' not in res.stdout and '\x1b' not in res.stdout and '█' not in res.stdout
    head, *rows = res.stdout.splitlines()[:3]
    assert head.split() == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'lr', 'time', 'left']
    assert [r.split()[0] for r in rows] == ['0', '1'] and 'validation accuracy 0.' in res.stdout
    hint = re.search(r'^  \S*(nntrain_predict) (\S+) (\S+)$', res.stdout, re.M)
    res = call(tmp_path, *hint.groups())
    assert res.returncode == 0 and res.stdout.startswith('runs/digits-mlp/sample.png\t'), res.stderr
    res = call(tmp_path, 'nntrain_train', '--resume')
    assert res.returncode == 2 and 'is finished' in res.stderr

def test_repeated_and_changed(folder, call):
    "From the config.json of a run the same weights come out, and it is said; another option changes the run"
    res = call(folder, 'nntrain_train', '--config', 'runs/digits-mlp')
    assert res.returncode == 0 and 'The weights are those of runs/digits-mlp, to the last bit.' in res.stdout
    res = call(folder, 'nntrain_train', '--config', 'runs/digits-mlp/config.json', '--epochs', 1, '--no-one-cycle', '--out', 'changed')
    assert "The weights aren't those of runs/digits-mlp: epochs was 3, is 1; one_cycle was True, is False" in res.stdout
    assert rows_of(folder/'changed') == 2

def test_predict(folder, call):
    "A line for each picture with tabs between, errors apart, and a status that tells"
    from nntrain.core import get_dataset
    dd = get_dataset('digits')
    (folder/'ims').mkdir()
    for i in range(3): dd['test'][i]['image'].save(folder/f'ims/img {i}.png')
    res = call(folder, 'nntrain_predict', 'runs/digits-mlp/weights.pt', 'ims/img 0.png', 'none.png', 'ims')
    assert res.returncode == 1
    lines = [l.split('\t') for l in res.stdout.splitlines()]
    assert [l[0] for l in lines] == ['ims/img 0.png', *(f'ims/img {i}.png' for i in range(3))]
    assert all(re.fullmatch(r'\d', l[1]) and 0 <= float(l[2]) <= 1 for l in lines)
    assert res.stderr.splitlines() == ["nntrain_predict: there is no file 'none.png'"]
    got = json.loads(call(folder, 'nntrain_predict', 'runs/digits-mlp', 'ims', '--format', 'json').stdout)
    assert [r['class'] for r in got] == [l[1] for l in lines[1:]]

def test_wrong_arguments(folder, call):
    "One line, status 2, nothing written"
    before = sorted(folder.rglob('*'))
    for name, args, why in (('nntrain_train', ['--resume', '--out', 'none'], '--resume: there is no interrupted run'),
                            ('nntrain_train', ['--batch-size', 'x'], "--batch-size: invalid int value: 'x'"),
                            ('nntrain_train', ['--out', 'runs/digits-mlp'], 'results of an earlier run'),
                            ('nntrain_train', ['--epohcs', '3'], "did you mean '--epochs'?"),
                            ('nntrain_train', ['digist'], "did you mean 'digits'?"),
                            ('nntrain_train', ['--config', 'none.json'], '--config: none.json'),
                            ('nntrain_lr_find', ['--opt', 'madam'], "did you mean 'adam'?"),
                            ('nntrain_predict', ['runs'], 'IMAGES')):
        res = call(folder, name, *args)
        assert (res.returncode, res.stdout) == (2, '')
        assert len(res.stderr.splitlines()) == 1 and res.stderr.startswith(f'{name}: ') and why in res.stderr
    assert sorted(folder.rglob('*')) == before

def test_the_program_begins_without_pytorch(folder, process):
    "Help, versions and misspelt options need none of the heavy packages"
    code = "import sys; import nntrain.cli; nntrain.cli._parser(nntrain.cli.nntrain_train); print({'torch', 'numpy', 'datasets', 'PIL', 'matplotlib'} & {*sys.modules})"
    assert subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True).stdout == 'set()\n'
    res = process(folder, 'nntrain_train', '--version')
    assert re.fullmatch(r'nntrain \d\S+, torch \d\S+\n', res.stdout)

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
def test_with_fastcore_2(tmp_path, process):
    "Users get fastcore 2, the tools need fastcore 1: with both, the help is the same and options may have hyphens or underscores"
    two = dict(PYTHONPATH=os.pathsep.join([os.environ['NNTRAIN_FASTCORE2'], str(root)]))
    assert subprocess.run([sys.executable, '-c', 'import fastcore; print(fastcore.__version__)'], env=env | two, capture_output=True, text=True).stdout.startswith('2.')
    for name in ('nntrain_train', 'nntrain_lr_find', 'nntrain_predict'):
        assert process(tmp_path, name, '--help').stdout == process(tmp_path, name, '--help', **two).stdout
    for i, args in enumerate((['--batch_size', 32, '--one_cycle', '--early_stop', 2], ['--batch-size', 32, '--one-cycle', '--early-stop', 2])):
        res = process(tmp_path, 'nntrain_train', '--epochs', 1, '--out', f'run{i}', *args, **two)
        assert res.returncode == 0 and rows_of(tmp_path/f'run{i}') == 2, res.stderr

@pytest.fixture
def terminal(tmp_path, command):
    "Start nntrain_train in a terminal of 60 columns. Returns functions: send a signal, read until something comes, end (the status)"
    import fcntl, pty, select, struct, termios
    def start(*args):
        cmd = command('nntrain_train', '--out', 'run', *args)
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(tmp_path)
            os.execve(cmd[0], cmd, env)
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 60, 0, 0))
        def read(until=None):
            out, end = b'', time.monotonic()+240
            while time.monotonic() < end and not (until and re.search(until, out)):
                if not select.select([fd], [], [], 1)[0]: continue
                try: b = os.read(fd, 65536)
                except OSError: break # the other end is closed
                if not b: break
                out += b
            return out.decode(errors='replace')
        def end():
            out, status = read(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(fd)
            return out, status
        return lambda: os.write(fd, b'\x03'), read, end
    return start

def test_ctrl_c_while_pytorch_loads(terminal):
    "The first line comes at once; no traceback, and the status says it"
    ctrl_c, read, end = terminal()
    assert read(b'Loading PyTorch ...\r\n').startswith('Loading PyTorch ...')
    ctrl_c()
    out, status = end()
    assert status == 130 and 'Interrupted.' in out and 'Traceback' not in out

@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_terminal(tmp_path, terminal, processes):
    "In a terminal there is a bar that moves, with the time left, and the rows of the table stay; Ctrl-C ends it tidily, and it can be resumed"
    more = '--epochs', '400', '--processes', processes
    ctrl_c, read, end = terminal(*more)
    out = read(rb'\r4/400, ')
    assert '█' in out and re.search(r'\r3/400, [0-9:]+ left: \|', out)
    lines = [l.split('\r')[-1] for l in out.split('\r\n')]
    assert max(map(len, out.replace('\n', '').split('\r'))) <= 60 and lines[1].split() == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'lr', 'time']
    assert [l.split()[0] for l in lines[2:5]] == ['0', '1', '2']
    ctrl_c()
    out, status = end()
    assert status == 130 and out.count('Interrupted. ') == 1 and '--resume' in out and 'Traceback' not in out
    rows = rows_of(tmp_path/'run')
    ctrl_c, read, end = terminal(*more, '--resume')
    read(b'Resumed from')
    ctrl_c()
    assert end()[1] == 130 and rows_of(tmp_path/'run') >= rows

@pytest.mark.slow
def test_in_a_pipe(tmp_path, process, command):
    "Rows alone, no bars, no first line; with a closed pipe it ends without complaint"
    res = process(tmp_path, 'nntrain_train', '--epochs', 2)
    assert (res.returncode, res.stderr) == (0, '') and '\r' not in res.stdout and '\x1b' not in res.stdout
    assert res.stdout.splitlines()[0].split() == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'lr', 'time', 'left']
    p = subprocess.Popen(command('nntrain_predict', 'runs/digits-mlp', *['runs/digits-mlp/sample.png']*3), cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.close()
    assert (p.stderr.read(), p.wait()) == (b'', 141)
    p.stderr.close()
