"Data loaders where they need processes of their own: workers, races, deaths, memory. The rest is tested in the notebooks of chapter 1."
import multiprocessing as mp
import os, random, signal, subprocess, sys, time
from functools import partial
from pathlib import Path
import datasets, numpy as np, PIL.Image, pytest, torch
from torch.utils.data import Dataset, IterableDataset, RandomSampler
from nntrain.core import digits, set_seed
from nntrain.data import memory
from nntrain.data.loader import first_batches
from nntrain.dataloaders import DataLoaders, decode, hf_ds_collate_fn

root = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning', 'ignore:.*worker processes in total.*:UserWarning')
needs_fork = pytest.mark.skipif('fork' not in mp.get_all_start_methods(), reason='no fork here')

@pytest.fixture(scope='module')
def dd(): return digits()

class Noisy(Dataset):
    "A random transform from each of the three generators"
    def __init__(self, n=40): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.tensor([i, random.random(), np.random.rand(), torch.rand(1).item()]), i

def batches(dl): return [tuple(o.clone() for o in b) for b in dl]
def same(a, b): return len(a)==len(b) and all(x.shape==y.shape and x.dtype==y.dtype and torch.equal(x, y) for p,q in zip(a, b) for x,y in zip(p, q))
def run(code, *args, **env):
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', **env))

@pytest.mark.parametrize('flatten', [True, False])
def test_decoded_streamed_and_workers_give_the_same_batches(dd, flatten):
    f = partial(hf_ds_collate_fn, flatten=flatten)
    make = lambda **kw: DataLoaders.from_hf_dd(dd, 100, f, seed=3, **kw)
    dlss = [make(), make(cache=False), make(cache=False, num_workers=2), make(cache=False, num_workers=2, persistent_workers=True, prefetch_factor=3)]
    assert [o.train.why for o in dlss] == [None]+['cache=False']*3
    for _ in range(2): # two passes
        first,*others = [(batches(o.train), batches(o.valid)) for o in dlss]
        for o in others: assert same(first[0], o[0]) and same(first[1], o[1])

@pytest.mark.parametrize('n_workers', [0, 2])
def test_random_transforms_depend_on_seed_pass_and_batch_alone(n_workers):
    make = lambda n=0, seed=5, **kw: DataLoaders.from_datasets(Noisy(), Noisy(), 8, seed=seed, num_workers=n, **kw)
    ref = make()
    passes = [batches(ref.train) for _ in range(3)]
    assert not same(passes[0], passes[1])
    dls = make(n_workers)
    set_seed(0); a = torch.rand(1); set_seed(0)
    assert same(batches(dls.train), passes[0])
    assert torch.rand(1) == a                       # the global generator wasn't moved
    random.random(), np.random.rand(), torch.rand(9) # nor does it matter
    assert same(batches(dls.train), passes[1])
    assert not same(batches(make(n_workers, seed=6).train), passes[0])

@pytest.mark.parametrize('n_workers,persistent', [(0,False), (2,False), (2,True)])
def test_resume_in_the_middle(n_workers, persistent):
    make = lambda n=0, **kw: DataLoaders.from_datasets(Noisy(), Noisy(16), 4, seed=1, num_workers=n, **kw)
    ref = make()
    passes,valid = [batches(ref.train) for _ in range(3)],batches(ref.valid)
    dls = make(n_workers, persistent_workers=persistent)
    batches(dls.train)
    for i,b in enumerate(dls.train):
        if i==2: state = dls.state_dict(); break # the workers are ahead by now
    assert (state['train']['epoch'], state['train']['batch']) == (1, 3)
    for n in (0, 2):
        other = DataLoaders.from_datasets(Noisy(), Noisy(16), 4, num_workers=n) # another seed, too
        other.load_state_dict(state)
        assert same(batches(other.train), passes[1][3:])
        assert same(batches(other.train), passes[2]) # the next pass is whole (a known bug elsewhere)
        assert same(batches(other.valid), valid)
    dls.load_state_dict(state)
    assert same(batches(dls.train), passes[1][3:])

def test_state_after_the_last_batch():
    dls = DataLoaders.from_datasets(Noisy(8), None, 4, seed=1)
    for b in dls.train: state = dls.state_dict()
    other = DataLoaders.from_datasets(Noisy(8), None, 4, seed=1)
    other.load_state_dict(state)
    assert batches(other.train) == []               # that pass has no batch left
    assert same(batches(other.train), batches(dls.train))

class Fetches(Noisy):
    def __init__(self, n, log): self.n,self.log = n,log
    def __getitem__(self, i):
        with open(self.log, 'a') as f: f.write(f'{i}\n')
        return torch.tensor(i)

@pytest.mark.parametrize('n_workers', [0, 2])
def test_resume_fetches_nothing_twice(tmp_path, n_workers):
    dls = DataLoaders.from_datasets(Fetches(40, tmp_path/'log'), None, 4, shuffle=False, num_workers=n_workers, seed=0)
    dls.load_state_dict({'train': dict(dls.train.state_dict(), batch=8)})
    assert torch.cat(list(dls.train)).tolist() == list(range(32, 40))
    assert sorted(map(int, (tmp_path/'log').read_text().split())) == list(range(32, 40))

def test_own_samplers_with_workers():
    s = lambda: RandomSampler(range(40), replacement=True, num_samples=20, generator=torch.Generator())
    a,b = (batches(DataLoaders.from_datasets(Noisy(), None, 8, sampler=s(), num_workers=n, seed=2).train) for n in (0, 2))
    assert same(a, b) and [len(o[1]) for o in a]==[8, 8, 4]
    a = batches(DataLoaders.from_datasets(Noisy(), None, 8, batch_sampler=[[1,2],[3]], num_workers=2, seed=2).train)
    assert [o[1].tolist() for o in a]==[[1,2],[3]]

class Sharded(IterableDataset):
    def __iter__(self):
        w = torch.utils.data.get_worker_info()
        yield from (torch.tensor(i) for i in range(w.id if w else 0, 20, w.num_workers if w else 1))

def test_iterable_with_workers():
    dls = DataLoaders.from_datasets(Sharded(), None, 5, num_workers=2, seed=0)
    a = list(dls.train)
    assert sorted(torch.cat(a).tolist()) == list(range(20))
    with pytest.raises(TypeError): len(dls.train)
    dls.load_state_dict({'train': dict(dls.train.state_dict(), batch=2)})
    assert torch.equal(torch.cat(list(dls.train)), torch.cat(a[2:]))

@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    "Parquet files of 101, 100 and 102 rows to train on, of 40 and 30 to validate, as a stream"
    from datasets import Dataset as HFDataset, load_dataset
    d,k,g = tmp_path_factory.mktemp('shards'),0,np.random.default_rng(0)
    for split,sizes in dict(train=(101, 100, 102), validation=(40, 30)).items():
        for j,n in enumerate(sizes):
            x = g.normal(size=(n, 4))
            HFDataset.from_dict(dict(x=x.tolist(), y=(x.sum(1)>0).astype(int).tolist(), i=list(range(k, k+n)))).to_parquet(d/f'{split}-{j}.parquet', batch_size=16)
            k += n
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr('datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN', 0, raising=False) # else 5 seconds for each pass with a buffer
        yield load_dataset('parquet', data_files={s: [str(f) for f in sorted(d.glob(f'{s}*'))] for s in ('train', 'validation')}, streaming=True)

def numbers(dl): return [i for b in dl for i in b[2].tolist()]
def until(dl, n):
    "The state after `n` batches of the next pass"
    for i,b in enumerate(dl):
        if i==n-1: return dl.state_dict()

@pytest.mark.parametrize('n_workers', [0, 2, 3])
def test_shards_come_once_in_each_pass(shards, n_workers):
    dls = DataLoaders.from_hf_dd(shards, 16, seed=3, num_workers=n_workers)
    for _ in range(8 if n_workers==3 else 3): # workers that disturb each other do so now and then
        assert sorted(numbers(dls.train)) == list(range(303))
        assert sorted(numbers(dls.valid)) == list(range(303, 373))

def test_validation_shards_keep_their_order(shards):
    "Hugging Face mixes the shards by the number of the pass: predictions must not"
    dls = DataLoaders.from_hf_dd(shards, 16, seed=3)
    assert len({tuple(numbers(dls.train)) for _ in range(6)}) > 1
    assert {tuple(numbers(dls.valid)) for _ in range(6)} == {tuple(range(303, 373))}

def test_predictions_of_a_stream_come_in_its_order(shards, recwarn):
    from nntrain.learner import Learner
    def xi(rows): return [hf_ds_collate_fn(rows)[2].float()[:,None]]*2
    dls = DataLoaders.from_hf_dd(shards, 16, xi, seed=3)
    learn = Learner(torch.nn.Linear(1, 1), dls, torch.nn.functional.mse_loss, torch.optim.SGD, 1.)
    for p,v in zip(learn.model.parameters(), (1., 0.)): torch.nn.init.constant_(p, v)
    for _ in range(4): list(dls.valid)
    recwarn.clear()
    assert learn.get_preds().flatten().tolist()==list(range(303, 373)) and not len(recwarn)
    assert learn.predict_item([5.], kind='numbers').tolist()==[5.]

read = []
def log(row): read.append(row['i']); return row
STREAMS = dict(plain=(lambda ds: ds.map(log), True), filtered=(lambda ds: ds.map(log).filter(lambda r: r['i']%3!=1), True),
               batched=(lambda ds: ds.map(log).map(lambda r: r, batched=True, batch_size=7), True), buffer=(lambda ds: ds.map(log), 64),
               own_buffer=(lambda ds: ds.shuffle(seed=1, buffer_size=50).map(log), True), fixed=(lambda ds: ds.map(log), False))

@pytest.mark.parametrize('kind,n_workers', [*((k, 0) for k in STREAMS), ('plain', 2), ('buffer', 2)])
def test_a_stream_goes_on_where_it_was(shards, kind, n_workers):
    f,shuffle = STREAMS[kind]
    def make(seed): return DataLoaders.from_datasets(f(shards['train']), None, 16, hf_ds_collate_fn, seed=seed, shuffle=shuffle, num_workers=n_workers).train
    dl,ref = make(3),make(3)
    first,second,third = [numbers(ref) for _ in range(3)]
    numbers(dl)
    state = until(dl, 7)
    read.clear()
    other = make(9)
    other.load_state_dict(state)
    assert other.state_dict()==state
    assert numbers(other)==second[112:]
    if not n_workers and 'buffer' not in kind: assert 0 not in read and len(read)<=303-112+7 # not from the start (batched `map` reads 7 rows at a time)
    assert numbers(other)==third # the next pass begins at its beginning
    dl = make(3)
    it = iter(dl)
    for _ in range(7): next(it)
    first_batches(dl, 2) # a look in the midst of it
    assert dl.state_dict()['place'] is None
    other.load_state_dict(dl.state_dict())
    assert numbers(other)==first[112:]
    dl = make(3)
    it = iter(dl)
    for _ in range(7): next(it)
    next(iter(dl.dataset.ds)) # somebody else's look
    other.load_state_dict(dl.state_dict())
    assert numbers(other)==first[112:]

class Unrepeatable(IterableDataset):
    "As webdataset's `shuffle`: a generator of its own"
    def __iter__(self): return iter(torch.tensor(random.Random(os.urandom(8)).sample(range(40), 40)))

def test_a_stream_that_does_not_repeat_itself_is_named(recwarn):
    from nntrain.data.loader import Epochs
    def make(ds): return DataLoaders.from_datasets(ds, None, 4, seed=1).train
    dl = make(Unrepeatable())
    state = until(dl, 3)
    dl = make(Unrepeatable())
    dl.load_state_dict(state)
    with pytest.warns(UserWarning, match="split 'train': the stream doesn't repeat itself.*Epochs"): assert len(list(dl))==7
    def shuffled(seed): return torch.tensor(random.Random(seed).sample(range(40), 40))
    ref,dl = make(Epochs(shuffled)),make(Epochs(shuffled))
    first,second = torch.cat(list(ref)).tolist(),torch.cat(list(ref)).tolist()
    assert first!=second and sorted(first)==sorted(second)==list(range(40))
    list(dl)
    state = until(dl, 3)
    other = make(Epochs(shuffled))
    other.load_state_dict(state)
    recwarn.clear()
    assert torch.cat(list(other)).tolist()==second[12:] and not len(recwarn)

def test_a_stream_of_other_workers_or_without_a_buffer_is_refused(shards):
    dl = DataLoaders.from_hf_dd(shards, 16, num_workers=2).train
    with pytest.raises(ValueError, match='saved with workers=2, this loader has workers=1.*the same num_workers'):
        DataLoaders.from_hf_dd(shards, 16).train.load_state_dict(dl.state_dict())
    with pytest.raises(ValueError, match='shuffle must be a whole number of rows in the buffer from 2'): DataLoaders.from_hf_dd(shards, 16, shuffle=-1)
    with pytest.raises(ValueError, match='Leave shuffle out'): DataLoaders.from_datasets(Sharded(), None, 4, shuffle=100)

def train(shards, folder, out, shuffle, die=None):
    "Train in steps on a stream, with checkpoints; or die at a step"
    from nntrain.checkpoint import CheckpointS
    from nntrain.learner import Learner
    from nntrain.subscribers import MetricsS, Subscriber
    class DieS(Subscriber):
        n = 0
        def after_step(self, learn):
            self.n += 1
            if self.n==die: os.kill(os.getpid(), signal.SIGKILL)
    set_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(.2), torch.nn.Linear(8, 2))
    def xy(rows): return hf_ds_collate_fn(rows)[:2]
    learn = Learner(model, DataLoaders.from_hf_dd(shards, 16, xy, seed=5, shuffle=shuffle), torch.nn.functional.cross_entropy, torch.optim.Adam, 1e-2, [MetricsS(), CheckpointS(folder, every=4), DieS()])
    learn.quiet = True
    learn.fit(steps=60, valid_every=15)
    torch.save((model.state_dict(), [{k: v for k,v in r.items() if k!='seconds'} for r in learn.history]), out)

@needs_fork
@pytest.mark.parametrize('shuffle', [True, 50])
def test_a_fit_in_steps_on_a_stream_killed_and_resumed_is_the_same(shards, tmp_path, shuffle):
    def run(*args):
        p = mp.get_context('fork').Process(target=train, args=(shards, *args))
        p.start(); p.join(100)
        return p.exitcode
    assert run(tmp_path/'whole', tmp_path/'a', shuffle)==0
    for die in (26, 17): assert run(tmp_path/'killed', tmp_path/'b', shuffle, die)==-signal.SIGKILL # in the second pass, in the midst of a stretch
    assert run(tmp_path/'killed', tmp_path/'b', shuffle)==0
    (a,h),(b,k) = (torch.load(tmp_path/o) for o in 'ab')
    assert all(torch.equal(a[o], b[o]) for o in a) and h==k and len(h)==8 and [r['samples'] for r in h[1::2]]==[70]*4

class Dies(Noisy):
    def __getitem__(self, i):
        if i==13: os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(i)

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_a_killed_worker_ends_the_pass_with_torchs_error_and_a_note():
    "It comes at once, wherever the program is: here, in the loader that waits for the batch"
    dls = DataLoaders.from_datasets(Dies(), None, 4, num_workers=2, shuffle=False)
    handler,t = signal.getsignal(signal.SIGINT),time.monotonic()
    with pytest.raises(RuntimeError, match='killed|exited unexpectedly') as e: list(dls.train)
    assert time.monotonic()-t < 20 # the promise, not a speed
    assert not mp.active_children() and signal.getsignal(signal.SIGINT) is handler
    assert any("split 'train'" in n and 'num_workers=0' in n for n in getattr(e.value, '__notes__', ()))

interrupted = '''
import multiprocessing as mp, sys, torch
from nntrain.dataloaders import DataLoaders
start,n = mp.process.BaseProcess.start,0
def interrupt(self):
    global n
    start(self)
    n += 1
    if n==2: raise KeyboardInterrupt # Ctrl-C, just after the second worker was started
mp.process.BaseProcess.start = interrupt
dls = DataLoaders.from_datasets(torch.arange(40), None, 4, num_workers=3, persistent_workers=bool(int(sys.argv[1])), seed=0)
mine = mp.Process(target=__import__('time').sleep, args=(60,), daemon=True)
start(mine)
try: next(iter(dls.train))
except KeyboardInterrupt: print('KeyboardInterrupt', mp.active_children()==[mine])
mine.terminate()
print(len(list(dls.train)))
'''

@pytest.mark.parametrize('persistent', [0, 1])
def test_ctrl_c_while_workers_are_started_leaves_none(persistent):
    r = run(interrupted, persistent)
    assert r.stdout.split('\n')[:2]==['KeyboardInterrupt True', '10'], r.stdout+r.stderr

@pytest.mark.parametrize('n_workers', [0, 2])
def test_workers_end_with_the_iteration(n_workers):
    dls = DataLoaders.from_datasets(Noisy(), Noisy(), 4, num_workers=n_workers, seed=0)
    for b in dls.train: break
    assert not mp.active_children()
    it = iter(dls.train)
    next(it)
    assert len(mp.active_children())==n_workers
    it.close()
    assert not mp.active_children()
    with pytest.raises(LookupError):
        for b in dls.train: raise LookupError
    assert not mp.active_children()
    assert len(first_batches(dls.train, 2))==2 and not mp.active_children()

def looks(dls):
    yield
    next(iter(dls.train))
    yield
    next(iter(dls.train)), next(iter(dls.valid))
    yield
    dls.one_batch(), first_batches(dls.train, 3), dls.stats()
    yield
    for b in dls.train: break
    yield
    global it
    it = iter(dls.train)
    next(it) # and it stays open
    yield

@pytest.mark.parametrize('n_workers', [0, 2])
def test_a_look_changes_nothing(n_workers):
    make = lambda: DataLoaders.from_datasets(Noisy(), Noisy(), 8, seed=5, num_workers=n_workers)
    ref = make()
    want = [batches(ref.train), batches(ref.valid), batches(ref.train)]
    for n in range(1, 7):
        dls = make()
        for _ in zip(range(n), looks(dls)): pass
        assert all(same(*o) for o in zip(want, [batches(dls.train), batches(dls.valid), batches(dls.train)])), n

def test_a_pass_left_in_the_middle_counts():
    make = lambda: DataLoaders.from_datasets(Noisy(), None, 8, seed=5)
    ref = make()
    _,second = batches(ref.train),batches(ref.train)
    dls = make()
    for i,b in enumerate(dls.train):
        if i==1: break
    assert same(batches(dls.train), second)
    dls = make() # saved after the first batch, resumed, cancelled after the second: as in the run that wasn't saved
    for b in dls.train:
        state = dls.state_dict()
        break
    other = make()
    other.load_state_dict(state)
    for b in other.train: break
    assert same(batches(other.train), second)

class Bad(Noisy):
    def __getitem__(self, i):
        if i==7: raise KeyError('gone')
        return torch.zeros(3 if i==9 else 2)

def test_bad_rows_are_named_by_workers_too():
    for rows,msg in (([6,7], "row 7: KeyError"), ([8,9], r"row 9 \(item 1; row 8 is item 0\)")):
        with pytest.raises(ValueError, match=msg): list(DataLoaders.from_datasets(Bad(), None, 2, batch_sampler=[rows], num_workers=1).train)

def apart(f, *args, code=0):
    "Call `f(*args)` in a process of its own, a fork of this one, which ends with `code`"
    p = mp.get_context('fork').Process(target=f, args=args)
    p.start()
    return lambda: (p.join(120), p.exitcode)[1]==code

def decode_once(folder, out, together=None, killed=False):
    "Decode the digits. `out` gets how many columns were decoded for it, and what they hold"
    n,real = 0,memory._decode_column
    def count(*args):
        nonlocal n
        n += 1
        return real(*args)
    def save(*args, old=torch.save):
        old(*args)
        os._exit(9)
    memory._decode_column = count
    memory._alive.clear()
    if killed: torch.save = save
    ds = digits()['train']
    if together: together.wait(60)
    cols = decode(ds, cache_dir=folder)
    out.write_text(f"{n} {int(cols['image'].long().sum())} {len(cols['label'])}")

@needs_fork
def test_cache_dir_between_processes_and_in_a_race(dd, tmp_path):
    folder,outs,both = tmp_path/'cache',[tmp_path/o for o in 'abc'],mp.get_context('fork').Barrier(2)
    ends = [apart(decode_once, folder, o, both) for o in outs[:2]] # both begin at the same moment
    assert all(end() for end in ends)
    total = int(decode(dd['train'])['image'].long().sum())
    for o in outs[:2]: assert o.read_text().split()[1:] == [str(total), '1438']
    assert len(list(folder.iterdir()))==1 # one whole copy, and no rest of the other
    assert apart(decode_once, folder, outs[2])()
    assert outs[2].read_text()==f'0 {total} 1438' # nothing was decoded
    cols = decode(digits()['train'].select(range(1438)), cache_dir=tmp_path/'other')
    assert torch.equal(cols['image'], decode(dd['train'])['image'])

@needs_fork
def test_killed_while_saving_leaves_nothing_that_is_used(tmp_path):
    folder,out = tmp_path/'cache',tmp_path/'out'
    assert apart(decode_once, folder, out, None, True, code=9)()
    left, = folder.iterdir()
    assert left.suffix=='.tmp'
    others = [folder/o for o in ('.being-written.pt.0.tmp', 'notes.tmp', 'notes.txt')]
    for o in others: o.touch()
    for o in (left, *others[1:]): os.utime(o, (0, time.time()-3700))
    assert apart(decode_once, folder, out)()
    assert out.read_text().split()[0]=='2' # decoded again
    copy, = set(folder.iterdir())-set(others) # what the killed process left is gone, what others may still write isn't
    assert copy.suffix=='.pt' and all(o.exists() for o in others)

def peak(n, mode, folder):
    "Read `n` pictures of 192 by 192 pixels. `folder/peak` gets the MB that it took at most"
    def rss(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])/1024
    def gen(n):
        im = PIL.Image.fromarray(np.zeros((192,192), dtype=np.uint8))
        for _ in range(n): yield dict(image=im)
    ds = datasets.Dataset.from_generator(gen, gen_kwargs=dict(n=n), features=datasets.Features(image=datasets.Image()), cache_dir=str(folder))
    small = ds.select(range(64))
    for b in DataLoaders.from_datasets(small, None, 16, cache=mode=='decoded').train: pass
    Path('/proc/self/clear_refs').write_text('5') # reset the peak
    before = rss()
    for b in DataLoaders.from_datasets(ds, None, 16, cache=mode=='decoded').train: pass
    (folder/'peak').write_text(f'{rss()-before}')

@needs_fork
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='peak memory is read from /proc')
def test_memory(tmp_path):
    n,mb = 2_000,2_000*192*192/2**20
    used = {}
    for mode in ('streamed', 'decoded'):
        (tmp_path/mode).mkdir()
        assert apart(peak, n, mode, tmp_path/mode)()
        used[mode] = float((tmp_path/mode/'peak').read_text())
    assert used['streamed'] < 0.5*mb + 30, 'streaming must not hold the data' # the Arrow file's pages, which the kernel may drop, count too
    assert mb*.9 < used['decoded'] < mb+300

def test_hub_data_offline_fails_soon():
    t = time.monotonic()
    r = run("from nntrain.core import get_dataset; get_dataset('no-such/data-set')", HF_HUB_OFFLINE='1', NNTRAIN_DATA='')
    assert r.returncode and 'NNTRAIN_DATA' in r.stderr and 'digits' in r.stderr
    assert time.monotonic()-t < 30 # imports included

def test_import_stays_light():
    r = run("import sys, nntrain.dataloaders; print([o for o in ('torchvision','datasets','matplotlib','PIL.Image') if o in sys.modules])")
    assert r.stdout.strip()=='[]', r.stdout+r.stderr
