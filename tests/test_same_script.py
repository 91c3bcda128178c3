"The same script or a clear no: what a resumed run takes back, and which changes of the script it refuses"
import pickle
from functools import partial
from types import SimpleNamespace
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler, TensorDataset, WeightedRandomSampler
from nntrain.acceleration import AugmentS, GradAccumS
from nntrain.average import EMAS
from nntrain.checkpoint import CheckpointS
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import Subscriber
from nntrain.learner import Learner, MetricsS, ProgressS
from nntrain.schedule import SchedulerS
from nntrain.verify import first_difference

torch.manual_seed(0)
x,y = torch.randn(80,4),torch.randint(3,(80,))
ds,valid = TensorDataset(x[:64], y[:64]),TensorDataset(x[64:], y[64:])
class Killed(Exception): pass
class KillS(Subscriber):
    order = 2000
    def __init__(self, n): self.n = n
    def after_batch(self, learn):
        self.n -= learn.training
        if not self.n: raise Killed
class Body(nn.Module):
    def __init__(self, f=F.relu, p=.2): super().__init__(); self.f,self.drop,self.a,self.b = f,nn.Dropout(p),nn.Linear(4,8),nn.Linear(8,3)
    def forward(self, x): return self.b(self.drop(self.f(self.a(x))))
def ours(ds=ds, **kw): return DataLoaders.from_datasets(ds, valid, 16, seed=3, **kw)
def torchs(ds=ds, **kw): return SimpleNamespace(train=DataLoader(ds, 16, **kw), valid=DataLoader(valid, 16))
def learner(model=Body, dls=ours, loss=F.cross_entropy, subs=lambda: [], cls=Learner, seed=0):
    set_seed(seed)
    l = cls(model(), dls(), loss, torch.optim.Adam, .01, subs())
    l.quiet = True
    return l
def resumed(folder, old, new, n=6, valid=True):
    "A run that is killed after `n` batches, and goes on as `new`"
    with pytest.raises(Killed): learner(**old).fit(3, subs=[CheckpointS(folder, every=2), KillS(n)])
    l = learner(**new)
    l.fit(3, subs=[CheckpointS(folder, every=2)], valid=valid)
    return l
def same(a, b):
    rows = [[{k: v for k,v in r.items() if k!='seconds'} for r in l.history] for l in (a, b)]
    return first_difference(dict(m=a.model.state_dict(), o=a.opt.state_dict(), h=rows[0]), dict(m=b.model.state_dict(), o=b.opt.state_dict(), h=rows[1]))

CHANGED = { # name → settings, others, what the error says
    'rows': ({}, dict(dls=partial(ours, TensorDataset(2*x[:64], y[:64]))), 'rows.train.data was'),
    'labels': ({}, dict(dls=partial(ours, TensorDataset(x[:64], (y[:64]+1)%3))), 'rows.train.data was'),
    'their order': ({}, dict(dls=partial(ours, TensorDataset(x[:64].flip(0), y[:64].flip(0)))), 'rows.train.data was'),
    'another fold': (dict(dls=lambda: torchs(sampler=SubsetRandomSampler(range(0, 32)))), dict(dls=lambda: torchs(sampler=SubsetRandomSampler(range(32, 64)))), 'rows.train.order was'),
    'shuffle': ({}, dict(dls=partial(ours, shuffle=False)), 'shuffle=True.*shuffle=False'),
    'dropout': ({}, dict(model=partial(Body, p=.6)), r'layers.drop was Dropout\(p=0.2.*p=0.6'),
    'activation': ({}, dict(model=partial(Body, F.gelu)), r'f=relu.*f=gelu'),
    'partial': (dict(loss=partial(F.cross_entropy)), dict(loss=partial(F.cross_entropy, label_smoothing=.3)), 'label_smoothing: 0.3'),
    'class weights': (dict(loss=nn.CrossEntropyLoss(torch.ones(3))), dict(loss=nn.CrossEntropyLoss(torch.tensor([9.,1,1]))), r'\(1, 1, 1\).*\(9, 1, 1\)'),
    'lambda': (dict(loss=lambda p,y: F.cross_entropy(p, y)), dict(loss=lambda p,y: F.multi_margin_loss(p, y)), 'loss was <lambda>'),
    'scheduler': (dict(subs=lambda: [SchedulerS(partial(StepLR, step_size=2))]), dict(subs=lambda: [SchedulerS(partial(ExponentialLR, gamma=.9))]), 'StepLR.*ExponentialLR'),
    'a setting of a subscriber': (dict(subs=lambda: [GradAccumS(2)]), dict(subs=lambda: [GradAccumS(4)]), r'GradAccumS\(n=2\), is GradAccumS\(n=4\)'),
    'augmentation': ({}, dict(subs=lambda: [AugmentS(lambda x: x+1)]), 'AugmentS is new'),
    'average': (dict(subs=lambda: [EMAS(.9)]), dict(subs=lambda: []), 'EMAS is missing'),
}
@pytest.mark.parametrize('name', CHANGED)
def test_a_changed_script_is_refused_with_the_old_and_the_new_value(tmp_path, name):
    old,new,said = CHANGED[name]
    with pytest.raises(ValueError, match=said): resumed(tmp_path, old, {**old, **new})

def test_without_validation_it_is_another_run(tmp_path):
    with pytest.raises(ValueError, match='validation was True, is False'): resumed(tmp_path, {}, {}, valid=False)

class OwnNoise(Dataset):
    "Rows that are never the same twice, whose object has an address in its `repr`"
    def __init__(self, x): self.x,self.cache = x,{}
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i]+float.fromhex(f'0x1p-{9+len(self.cache)}'), int(y[i])
HARMLESS = {
    'nothing': ({}, {}),
    'other objects of the same kind': (dict(dls=lambda: ours(OwnNoise(x[:64])), loss=lambda p,y: F.cross_entropy(p, y)), {}),
    'workers': ({}, dict(dls=lambda: ours(num_workers=1))),
    'a last batch that is whole': ({}, dict(dls=lambda: ours(drop_last=True))),
    'another seed of the script': ({}, dict(seed=5)),
    'a progress bar': ({}, dict(subs=lambda: [ProgressS(display='log')])),
    'the order of subscribers': (dict(subs=lambda: [GradAccumS(2), EMAS(.9)]), dict(subs=lambda: [EMAS(.9), GradAccumS(2)])),
}
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
@pytest.mark.parametrize('name', HARMLESS)
def test_what_changes_no_number_may_change(tmp_path, name):
    old,new = HARMLESS[name]
    whole = learner(**old)
    whole.fit(3)
    assert same(whole, resumed(tmp_path, old, {**old, **new})) is None

def test_a_setting_that_is_ignored_is_said(tmp_path):
    with pytest.warns(UserWarning, match='seeds.train was .* the order of the data goes on from the seed in the checkpoint'):
        l = resumed(tmp_path, {}, dict(dls=lambda: DataLoaders.from_datasets(ds, valid, 16, seed=7)))
    whole = learner()
    whole.fit(3)
    assert same(whole, l) is None

G = lambda: torch.Generator().manual_seed(1)
LOADERS = dict(shuffle=lambda: torchs(shuffle=True, generator=G()), sampler=lambda: torchs(sampler=RandomSampler(ds, generator=G())),
               weighted=lambda: torchs(sampler=WeightedRandomSampler(torch.ones(64), 64, generator=G())))
@pytest.mark.parametrize('name', LOADERS)
@pytest.mark.parametrize('n', [3, 6, 11]) # killed in epoch 0, 1, 2
def test_generators_of_torchs_loaders_are_taken_back(tmp_path, name, n):
    kw = dict(dls=LOADERS[name])
    whole = learner(**kw)
    whole.fit(3)
    assert same(whole, resumed(tmp_path, kw, kw, n)) is None

@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_workers_that_outlive_a_pass(tmp_path):
    "Their own random numbers are lost, and it is said; the order of the data is that of the run"
    kw = dict(dls=lambda: torchs(shuffle=True, num_workers=1, persistent_workers=True))
    whole = learner(**kw)
    whole.fit(3)
    with pytest.warns(UserWarning, match='persistent_workers=True'): l = resumed(tmp_path, kw, kw, 7)
    assert same(whole, l) is None

class RunningLoss(nn.Module):
    def __init__(self): super().__init__(); self.register_buffer('mean', torch.ones(()), persistent=False)
    def forward(self, p, y):
        loss = F.cross_entropy(p, y)
        if p.requires_grad: self.mean.mul_(.9).add_(.1*loss.detach())
        return loss/self.mean, dict(mean=self.mean.clone())
class TwoOptimizers(Learner):
    "The critic, its optimizer and its schedule are attributes; one of them is in a list"
    def __init__(self, *args):
        super().__init__(*args)
        self.critic = nn.Linear(3,1)
        self.opts = [torch.optim.Adam(self.critic.parameters(), .05)]
        self.sched = torch.optim.lr_scheduler.ExponentialLR(self.opts[0], .9)
    def get_loss(self):
        super().get_loss()
        if self.training:
            self.critic(self.preds.detach()).mean().backward()
            self.opts[0].step(); self.opts[0].zero_grad(); self.sched.step()
            self.loss = self.loss+.1*self.critic(self.preds).mean()
@pytest.mark.parametrize('kw', [lambda: dict(loss=RunningLoss()), lambda: dict(cls=TwoOptimizers)], ids=['loss', 'optimizer'])
@pytest.mark.parametrize('n', [3, 7])
def test_what_has_a_state_beside_the_model_is_taken_back(tmp_path, kw, n):
    whole = learner(**kw())
    whole.fit(3)
    assert same(whole, resumed(tmp_path, kw(), {**kw(), 'seed': 5}, n)) is None

class Knows:
    "A metric that keeps the learner, a weight, and a network"
    def __init__(self, learn): self.learn,self.w,self.net = learn,learn.model.a.weight,nn.Linear(500,500); self.reset()
    def reset(self): self.s,self.n = 0.,0
    def update(self, p, y): self.s,self.n = self.s+float(self.w.detach().norm())+float(self.learn.loss.detach()),self.n+1
    def compute(self): return self.s/self.n
def test_a_metric_may_know_the_learner(tmp_path):
    class WithMetric(Learner):
        def __init__(self, *args): super().__init__(*args); self.subs = [MetricsS(knows=Knows(self))]
    whole = learner(cls=WithMetric)
    whole.fit(3)
    assert same(whole, resumed(tmp_path, dict(cls=WithMetric), dict(cls=WithMetric), 7)) is None
    assert max(f.stat().st_size for f in tmp_path.glob('*.pt')) < 200_000

def test_a_learner_can_be_pickled_after_a_fit(tmp_path):
    l = learner()
    l.fit(1, subs=[CheckpointS(tmp_path)])
    copy = pickle.loads(pickle.dumps(l))
    for o in (l, copy): set_seed(1); o.fit(1)
    assert same(l, copy) is None
