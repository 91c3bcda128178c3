"Worker processes of the scratch DataLoader, and the scratch twins under Learner"
import multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from nntrain.scratch.data import DataLoader, Dataset, SampleError

# Forking a process that has threads warns from Python 3.12 on; the workers here read tensors only.
pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
methods = [o for o in ('fork', 'spawn') if o in multiprocessing.get_all_start_methods()]

class Rows(Dataset):
    def __init__(self, n): super().__init__(torch.arange(n), torch.arange(n)*10)

class Uneven(Rows):
    "Earlier batches take longer, so that later ones are ready first"
    def __getitem__(self, i): time.sleep(.05 if i<4 else 0); return super().__getitem__(i)

class Meeting(Rows):
    "A batch can only be read while another worker reads one too"
    def __init__(self, n, ctx): super().__init__(n); self.barrier = multiprocessing.get_context(ctx).Barrier(2)
    def __getitem__(self, i): self.barrier.wait(60); return super().__getitem__(i)[0], os.getpid()

class Broken(Rows):
    def __getitem__(self, i):
        if i==13: raise OSError('file is truncated')
        return super().__getitem__(i)

class Unsendable(Rows):
    def __getitem__(self, i): return lambda: i

class Deadly(Rows):
    def __getitem__(self, i):
        if i==5: os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)

class Slow(Rows):
    def __getitem__(self, i): time.sleep(60)

class Noise(Rows):
    def __getitem__(self, i): return torch.rand(3)

def no_children(): assert multiprocessing.active_children() == []

@pytest.mark.parametrize('ctx', methods)
def test_same_batches_in_order(ctx):
    want = list(DataLoader(Uneven(22), 4))
    got = list(DataLoader(Uneven(22), 4, num_workers=3, multiprocessing_context=ctx))
    assert len(got)==len(want)==6
    for (a,b),(c,d) in zip(got, want): assert torch.equal(a, c) and torch.equal(b, d)
    no_children()

def test_more_workers_than_batches():
    assert len(list(DataLoader(Rows(3), 2, num_workers=5))) == 2
    assert list(DataLoader(Rows(0), 2, num_workers=2)) == []
    no_children()

@pytest.mark.parametrize('ctx', methods)
def test_workers_read_at_the_same_time(ctx):
    pids = [set(p.tolist()) for _,p in DataLoader(Meeting(8, ctx), 2, num_workers=2, multiprocessing_context=ctx)]
    assert len(pids)==4 and pids[0]==pids[2]!=pids[1]==pids[3] and os.getpid() not in pids[0]|pids[1]

@pytest.mark.parametrize('ctx', methods)
def test_error_names_the_sample(ctx):
    dl,got = DataLoader(Broken(40), 4, num_workers=2, multiprocessing_context=ctx),[]
    with pytest.raises(SampleError, match='sample 13 of the data set') as e:
        for xb,_ in dl: got += xb.tolist()
    assert e.value.index==13 and 'OSError: file is truncated' in str(e.value) and '__getitem__' in str(e.value)
    assert got==list(range(12)) # the batches before it came through
    no_children()

def test_what_cannot_be_sent():
    with pytest.raises(SampleError, match="sample .0, 1. of the data set(.|\n)*pickle"): list(DataLoader(Unsendable(4), 2, num_workers=1))
    no_children()

def test_killed_worker_is_noticed():
    with pytest.raises(SampleError, match='sample .4, 5. of the data set: its worker process died'): list(DataLoader(Deadly(12), 2, num_workers=2))
    no_children()

@pytest.mark.parametrize('ctx', methods)
def test_nobody_left_when_the_loop_is_left(ctx):
    dl = DataLoader(Rows(400), 2, num_workers=2, multiprocessing_context=ctx)
    for _ in dl: break
    no_children()
    with pytest.raises(ZeroDivisionError):
        for _ in dl: 1/0
    it = iter(dl)
    next(it)
    assert len(multiprocessing.active_children()) == 2
    it.close()
    no_children()

def test_busy_workers_are_stopped():
    it = iter(DataLoader(Slow(4), 1, num_workers=2))
    def stop(*_): raise TimeoutError
    old = signal.signal(signal.SIGALRM, stop)
    try:
        signal.alarm(1)
        with pytest.raises(TimeoutError): next(it)
    finally: signal.alarm(0); signal.signal(signal.SIGALRM, old)
    no_children()

def test_random_numbers_depend_on_the_batch_alone():
    def run(n): return list(DataLoader(Noise(12), 3, num_workers=n, seed=5))
    one,three = run(1),run(3)
    for a,b in zip(one, three): assert torch.equal(a, b)
    assert len({o.sum().item() for o in one}) == 4 # each batch draws its own
    dl = DataLoader(Noise(6), 3, num_workers=2, seed=5)
    assert not torch.equal(next(iter(dl)), next(iter(dl))) # and so does each epoch
    before = torch.get_rng_state()
    list(dl)
    assert torch.equal(torch.get_rng_state(), before)

orphans = '''
import os, sys, time
sys.path.insert(0, {tests!r})
from test_scratch import DataLoader, Rows, multiprocessing
if __name__ == '__main__':
    it = iter(DataLoader(Rows(400), 2, num_workers=2, multiprocessing_context={ctx!r}))
    next(it)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    time.sleep(60)
'''

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError: return False

@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks processes up in /proc')
@pytest.mark.parametrize('ctx', methods)
def test_nobody_left_when_the_main_process_is_killed(ctx, tmp_path):
    script = tmp_path/'main.py'
    script.write_text(orphans.format(tests=os.path.dirname(__file__), ctx=ctx))
    p = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pids = [int(o) for o in p.stdout.readline().split()]
    try:
        assert len(pids)==2 and all(alive(o) for o in pids)
        p.kill(); p.wait(); p.stdout.close()
        end = time.monotonic()+30
        while any(alive(o) for o in pids) and time.monotonic()<end: time.sleep(.05)
        assert not any(alive(o) for o in pids)
    finally:
        for o in filter(alive, pids): os.kill(o, signal.SIGKILL)
