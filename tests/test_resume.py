"Processes that are killed, asked to stop, or out of disk, and the runs that go on from what they left. `torture.py` is the harness, `make torture` its longer run."
import os, pickle, random, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import pytest
root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tests'))
import torture
from nntrain.saving.files import read_file, write_file

pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
GROUPS = dict(zip(('random step', 'during a save', 'three kills', 'augmented', 'two workers', 'accumulating'), (10, 10, 3, 5, 3, 2)))

@pytest.fixture(scope='module')
def folder():
    d = Path(torture.tempfile.mkdtemp(dir=torture.shm()))
    yield d
    shutil.rmtree(d)

@pytest.fixture(scope='module')
def groups(folder):
    "All killed and resumed runs, two at a time"
    res = torture.make_jobs(folder/'jobs', seed=random.SystemRandom().randrange(10**6))
    torture.run_jobs(list({id(r): r for r,_ in res.values()}.values())+[j for _,js in res.values() for j in js])
    return res

@pytest.fixture(scope='module')
def reference(groups): return groups['random step'][0]

@pytest.mark.parametrize('group', GROUPS)
def test_killed_and_resumed_is_the_same_to_the_last_bit(groups, group):
    ref,jobs = groups[group]
    assert not ref.error and len(jobs)==GROUPS[group]
    assert {j.name: j.compare(ref) for j in jobs}=={j.name: None for j in jobs}
    assert all(j.starts==(4 if group=='three kills' else 2) for j in jobs), 'each run was killed as often as planned'

def test_the_comparison_can_fail(groups):
    "Other runs are seen to differ: else the tests above would prove nothing"
    assert 'differs' in groups['random step'][1][0].compare(groups['augmented'][0])

def start(folder, *flags, **env):
    "The script as a process of its own, as anybody would start it"
    folder.mkdir(exist_ok=True)
    cmd = [sys.executable, root/'tests'/'train_script.py', '--dir', folder/'ckpt', '--steps-file', folder/'steps', '--out', folder/'out', '--history', folder/'out.history', *flags]
    return subprocess.Popen([str(o) for o in cmd], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, OMP_NUM_THREADS='1', **env))

def steps(folder): return [l.split() for l in (folder/'steps').read_text().splitlines()] if (folder/'steps').exists() else []
def wait_for(p, folder, n):
    "Wait until step `n` was written down"
    end = time.monotonic()+60
    while len(steps(folder))<n and p.poll() is None and time.monotonic()<end: time.sleep(.001)
def finish(folder, reference, *flags):
    "Run to the end; is it the same as the run that was never stopped?"
    out,_ = (p := start(folder, *flags)).communicate(timeout=100)
    assert p.returncode==0, out
    for o in ('out', 'out.history'): assert (folder/o).read_text()==(reference.folder/o).read_text()
    return out

@pytest.mark.parametrize('sig,code', [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_signals_save_after_the_batch_and_no_step_is_done_twice(folder, reference, sig, code):
    f = folder/f'signal{sig}'
    p = start(f, '--every', 'epoch')
    wait_for(p, f, 30)
    sent = time.monotonic()
    p.send_signal(sig)
    out,_ = p.communicate(timeout=30)
    assert p.returncode==code and time.monotonic()-sent < 5, out
    assert ('KeyboardInterrupt' in out)==(sig==signal.SIGINT)
    n = len(steps(f))
    assert 30 <= n < 180
    finish(f, reference, '--every', 'epoch')
    assert [int(s) for s,_ in steps(f)]==list(range(1, 181)), 'each step once'

@pytest.mark.parametrize('ours', [False, True])
def test_a_signal_to_the_whole_group_with_workers(folder, groups, ours):
    f = folder/f'group{ours}'
    flags = '--augment', '--workers', '2', '--every', 'epoch', *(['--ours'] if ours else [])
    f.mkdir()
    ref = groups['two workers'][0]
    if ours: # the same run, never stopped
        ref = SimpleNamespace(folder=folder/'ours')
        out,_ = (p := start(ref.folder, *flags)).communicate(timeout=60)
        assert p.returncode==0, out
    cmd = [sys.executable, root/'tests'/'train_script.py', '--dir', f/'ckpt', '--steps-file', f/'steps', '--out', f/'out', '--history', f/'out.history', *flags]
    p = subprocess.Popen([str(o) for o in cmd], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'), start_new_session=True)
    wait_for(p, f, 30) # well before the end, which comes half a second later
    os.killpg(p.pid, signal.SIGTERM)
    out,_ = p.communicate(timeout=30)
    assert p.returncode==143, f'{p.returncode} after {len(steps(f))} steps: {out}'
    finish(f, ref, *flags)
    assert [int(s) for s,_ in steps(f)]==list(range(1, 181)), 'each step once'

def copy(reference, folder, name, n=3):
    "A folder with the reference's checkpoints"
    (folder/name).mkdir()
    shutil.copytree(reference.ckpt, folder/name/'ckpt')
    return folder/name,sorted((folder/name/'ckpt').glob('*.pt'))

class Bomb:
    def __reduce__(self): return os.system, (f'touch {os.environ["NNTRAIN_BOMB"]}',)

def damage(kind, f):
    data = bytearray(f.read_bytes())
    if kind=='deleted': f.unlink(); return
    if kind=='truncated': del data[len(data)*2//3:]
    if kind=='empty': data.clear()
    if kind=='flipped':
        for i in random.Random(0).sample(range(len(data)), 64): data[i] ^= 64
    if kind=='foreign': data = bytearray(pickle.dumps(dict(model='another program')))
    if kind=='bomb': write_file(dict(model=Bomb()), f); return # with a checksum that is right
    if kind=='part missing':
        state = read_file(f); del state['rng']
        write_file(state, f); return
    f.write_bytes(data)

@pytest.mark.parametrize('kind,reason', [('truncated','cut short'), ('empty','is empty'), ('flipped',''), ('foreign',"isn't an nntrain checkpoint"), ('deleted',None),
                                         ('bomb','something else than tensors'), ('part missing','part rng is missing')])
def test_a_damaged_file_is_left_out_and_the_one_before_is_used(folder, reference, kind, reason, monkeypatch, capsys):
    f,files = copy(reference, folder, kind)
    monkeypatch.setenv('NNTRAIN_BOMB', str(f/'boom'))
    damage(kind, files[-1])
    argv = ['--dir', str(f/'ckpt'), '--steps-file', str(f/'steps'), '--out', str(f/'out'), '--history', str(f/'out.history')]
    if reason is None: torture.train_script.main(argv)
    else:
        with pytest.warns(UserWarning, match=files[-1].name) as ws: torture.train_script.main(argv)
        assert reason in str(ws[0].message)
    assert f'Resumed from {files[-2]}' in capsys.readouterr().out
    for o in ('out', 'out.history'): assert (f/o).read_text()==(reference.folder/o).read_text()
    assert not (f/'boom').exists()

def test_no_good_file_is_an_error_and_not_a_new_beginning(folder, reference):
    f,files = copy(reference, folder, 'none')
    for o in files: damage('truncated', o)
    out,_ = (p := start(f)).communicate(timeout=60)
    assert p.returncode==1 and 'is a good checkpoint' in out and 'resume=False' in out and not steps(f)

@pytest.fixture
def small_disk(tmp_path):
    "A disk of 200 KB: too small for three checkpoints"
    d = tmp_path/'disk'
    d.mkdir()
    if os.name!='posix' or os.geteuid()!=0 or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=200k', 'tmpfs', d], capture_output=True).returncode: pytest.skip('needs to be root, to mount a small disk')
    yield d
    subprocess.run(['umount', d], check=True)

def test_a_full_disk(small_disk, folder, reference, tmp_path):
    f = folder/'full'
    f.mkdir()
    (f/'ckpt').symlink_to(small_disk)
    out,_ = (p := start(f)).communicate(timeout=60)
    assert p.returncode==1 and 'No space left on device' in out and 'Errno 28' in out and str(f/'ckpt') in out
    left = sorted(small_disk.iterdir())
    assert left and all(o.suffix=='.pt' and not o.name.startswith('.') for o in left), 'no temporary file stays'
    for o in left: read_file(o) # and all are whole
    n = len(steps(f))
    assert 0 < n < 180
    subprocess.run(['mount', '-o', 'remount,size=5m', small_disk], check=True) # now there is room
    assert 'Resumed from' in finish(f, reference)

SLOW = '''
import sys, time, torch
import torch.nn.functional as F
from types import SimpleNamespace
from torch.utils.data import DataLoader, Dataset
from nntrain.checkpoint import CheckpointS
from nntrain.dataloaders import DataLoaders
from nntrain.events import Subscriber
from nntrain.learner import Learner
class SayS(Subscriber):
    def after_batch(self, learn): print('batch', flush=True)
class Slow(Dataset):
    "The first 4 rows are there at once, for the next one you wait"
    def __len__(self): return 8
    def __getitem__(self, i):
        if i>=4: time.sleep(20)
        return torch.ones(2),0
ours,folder = sys.argv[1]=='True',sys.argv[2]
kw = dict(num_workers=2)
dls = DataLoaders.from_datasets(Slow(), None, 2, shuffle=False, cache=False, **kw) if ours else SimpleNamespace(train=DataLoader(Slow(), 2, **kw), valid=None)
Learner(torch.nn.Linear(2,2), dls, F.cross_entropy, torch.optim.SGD, .1).fit(2, valid=False, subs=[CheckpointS(folder), SayS()])
'''
@pytest.mark.parametrize('ours', [False, True])
def test_a_signal_while_waiting_for_workers(tmp_path, ours):
    "It ends the waiting, the run is saved, and the place is right"
    p = subprocess.Popen([sys.executable, '-c', SLOW, str(ours), str(tmp_path/'ckpt')], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(root)), start_new_session=True)
    assert [p.stdout.readline() for _ in range(2)]==['batch\n']*2
    time.sleep(1) # well into the waiting for the third batch
    sent = time.monotonic()
    os.killpg(p.pid, signal.SIGTERM)
    out,_ = p.communicate(timeout=30)
    assert p.returncode==143 and time.monotonic()-sent < 15, out # the next row takes 20 seconds
    state = read_file(tmp_path/'ckpt'/'checkpoint-000001.pt')
    assert state['at']==[0, 'train', 2] and state['steps']==2
    if ours: assert state['data']['train']['batch']+state['skip']==2
