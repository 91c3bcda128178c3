"""What a disk can do to a save: each call of the file system fails once; the power goes, and only what was flushed is
sure to be there. After each of it the run goes on, and ends bit-identical."""
import errno, os, shutil, warnings
from collections import Counter
from itertools import chain, combinations, product
import pytest, torch
import torch.nn.functional as F
from disk import watched
from torch import nn
from torch.utils.data import TensorDataset
from nntrain.acceleration import EMAS
from nntrain.checkpoint import CheckpointS
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import Subscriber
from nntrain.learner import Learner
from nntrain.saving.files import BadCheckpoint

ERRORS = errno.ENOSPC, errno.EIO, errno.EACCES, errno.EXDEV
g = torch.Generator().manual_seed(0)
x = torch.randn(40, 4, generator=g)
data = TensorDataset(x, (x@torch.randn(4, 3, generator=g)).argmax(1))

class StopS(Subscriber):
    "Counts training batches, and ends the process, so to say, after `n` of them"
    class Stopped(BaseException): pass
    def __init__(self, n=None): self.n,self.done = n,0
    def cleanup_batch(self, learn):
        self.done += learn.training
        if self.done==self.n: raise self.Stopped

def run(folder=None, kind='', stop=None):
    "A training of two epochs with five batches each, as a script would do it: the bits of its end, and its batches"
    set_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(.2), nn.Linear(8, 3))
    subs = [EMAS(.9)]*(kind=='ema')+([CheckpointS(folder, every=4, keep=1, monitor='train_loss', background=kind=='background')] if folder else [])
    learn = Learner(model, DataLoaders.from_datasets(data, None, 8, seed=0), F.cross_entropy, torch.optim.Adam, .02, [*subs, stops := StopS(stop)])
    learn.quiet = True
    try: learn.fit(2, valid=False)
    except StopS.Stopped: pass
    rows = [{k: v for k,v in r.items() if k!='seconds'} for r in learn.history]
    return bits([learn.model.state_dict(), learn.opt.state_dict(), rows]),stops.done

def bits(x):
    if isinstance(x, torch.Tensor): return x.detach().numpy().tobytes()
    if isinstance(x, dict): return {k: bits(v) for k,v in x.items()}
    return [bits(v) for v in x] if isinstance(x, (list, tuple)) else x

@pytest.fixture(scope='module', params=['', 'ema', 'background'])
def kind(request): return request.param # with an average, best.pt and the last checkpoint aren't the same

@pytest.fixture(scope='module')
def good(kind): return run(kind=kind)[0]

@pytest.fixture
def folder(tmp_path, kind):
    "Of a run that was killed after 8 of its 10 batches were saved. One more save is to come, after the last batch."
    run(d := tmp_path/'begun', kind, stop=9)
    assert sorted(f.name for f in d.iterdir())==['best.pt', 'checkpoint-000003.pt']
    return d

class Fail:
    "Lets call number `n` of the file system fail with `error`, and writes all calls down"
    def __init__(self, n=None, error=None): self.n,self.error,self.calls,self.paths = n,error,[],()
    def __call__(self, name, paths, call):
        self.calls.append((name, paths[-1].suffix))
        if len(self.calls)-1!=self.n: return call()
        self.paths = paths
        raise OSError(self.error, os.strerror(self.error), str(paths[0]))

LOOKS = 'stat', 'lstat', 'open', 'scandir', 'listdir', 'flock' # which change nothing

def test_each_call_of_the_file_system_fails_once(folder, kind, good, tmp_path):
    shutil.copytree(folder, tmp_path/'dry')
    with watched(tmp_path/'dry', dry := Fail()): assert run(tmp_path/'dry', kind)==(good, 2)
    seen,todo = Counter(),[(len(dry.calls), errno.EIO)] # that one never comes
    for i,call in enumerate(dry.calls):
        seen[call] += 1
        if seen[call]==1 and not (call[0] in LOOKS or kind): todo += [(i, e) for e in ERRORS]
        elif seen[call]%{'write': 60}.get(call[0], 4 if kind else 2)==0: todo.append((i, ERRORS[i%4]))
    for i,error in todo:
        shutil.copytree(folder, d := tmp_path/f'{i}-{error}')
        end = err = None
        with watched(d, fail := Fail(i, error)), warnings.catch_warnings(record=True):
            warnings.simplefilter('always')
            try: end = run(d, kind)[0]
            except (OSError, BadCheckpoint) as e: err = e
        what = f'{errno.errorcode[error]} in {dry.calls[i:i+1]} of {[p.name for p in fail.paths]}: {err!r}'
        assert bool(fail.paths)==(i < len(dry.calls)), what
        assert end==good if err is None else str(d) in str(err), what
        left = [f.name for f in d.iterdir() if f.suffix=='.tmp']
        assert not left or fail.calls[i][0]=='unlink', f'{what}: {left}'
        assert run(d, kind)[0]==good and not [f for f in d.iterdir() if f.suffix=='.tmp'], what
        shutil.rmtree(d)

class Disk:
    """Follows the calls of the file system, and knows after each what a disk may hold when the power goes. A name is sure
    to be there or gone when its folder was flushed, and the data of a file when the file was; or else any part of it."""
    def __init__(self, folder):
        self.folder,self.names,self.pending,self.disks = folder,{f.name: f.name for f in folder.iterdir()},[],{}
        self.safe,self.now = ({name: (folder/name).read_bytes() for name in self.names} for _ in range(2)) # file → data
        self.after = dict(self.names) # name → file, if no power cut comes

    def __call__(self, name, paths, call):
        res,names = call(),[p.name for p in paths]
        if name in ('rename', 'replace', 'link'): self.change(names[1], self.after[names[0]])
        if name in ('rename', 'replace'): self.change(names[0], None)
        if name in ('unlink', 'remove'): self.change(names[0], None)
        if name=='create': self.change(names[0], f'{names[0]} {len(self.now)}')
        if name=='fsync' and paths[0]==self.folder: self.names,self.pending = dict(self.after),[]
        if names[0] in self.after and paths[0].exists(): self.now[self.after[names[0]]] = paths[0].read_bytes()
        if name=='fsync' and names[0] in self.after: self.safe[self.after[names[0]]] = self.now[self.after[names[0]]]
        if name not in (*LOOKS, 'write'): self.cut(f'{name} {names}')
        return res

    def change(self, name, file): # a rename is two changes, of which the disk may have either: more than is possible
        self.after.pop(name, None)
        if file: self.after[name] = file
        self.pending.append((name, file))

    def data(self, file):
        "What the data of a file may be"
        old,new = self.safe.get(file, b''),self.now.get(file, b'')
        n = len(new)//2
        return [old] if old==new else [old, new, new[:n], bytes(len(new)), new[:n]+bytes(len(new)-n), bytes(n)+new[n:]]

    def cut(self, where):
        for some in chain.from_iterable(combinations(self.pending, n) for n in range(len(self.pending)+1)):
            names = {k: file for k,file in (self.names | dict(some)).items() if file}
            for data in product(*(self.data(file) if name.endswith('.pt') else [b'half of it'] for name,file in names.items())):
                disk = dict(zip(names, data))
                self.disks.setdefault(tuple(sorted(disk.items())), where)

def test_the_power_goes(folder, kind, good, tmp_path):
    shutil.copytree(folder, d := tmp_path/'straight')
    with watched(d, disk := Disk(d)): assert run(d, kind)==(good, 2)
    assert len(disk.disks) > 10
    for i,(files,where) in enumerate(disk.disks.items()):
        (d := tmp_path/str(i)).mkdir()
        for name,data in files: (d/name).write_bytes(data)
        end,batches = run(d, kind)
        assert end==good and batches <= 2, f'after {where}: {[(name, len(data)) for name,data in files]}'
        shutil.rmtree(d)
