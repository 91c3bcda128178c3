"Random trainings, killed and resumed (`fuzz.py`; more of them in `make torture`); and what they have found so far, each by itself"
import os, random
from types import SimpleNamespace
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset
import fuzz
from disk import watched
from nntrain.acceleration import NormalizationS
from nntrain.checkpoint import CheckpointS
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import Subscriber
from nntrain.inspect import TimerS
from nntrain.learner import Learner
from nntrain.schedule import SchedulerS, one_cycle
from nntrain.tracking import TrackerS, read_log

pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning', 'ignore:.*worker processes in total.*:UserWarning')
SEED = int(os.environ.get('FUZZ_SEED', random.SystemRandom().randrange(10**6)))

def test_random_runs_are_the_same_after_up_to_three_kills(capfd):
    assert fuzz.main(['--seed', str(SEED), '--trials', '20'])==0, capfd.readouterr().out

def test_the_comparison_can_fail(monkeypatch, tmp_path):
    "A state that isn't saved is seen: else the test above would prove nothing"
    monkeypatch.delattr(fuzz.DiceS, 'state_dict')
    monkeypatch.setattr(fuzz, 'draw', lambda seed, draw=fuzz.draw: SimpleNamespace(**vars(draw(3)) | dict(fits=[dict(epochs=2)], subs=dict(dice=True), ckpt=dict(every=1, keep=1, monitor=None), kills=[None])))
    monkeypatch.setattr(fuzz, 'plan', lambda o, seen, r: dict(kind='event', at='after_batch', nth=4, how='kill'))
    wrong,_,kills = fuzz.trial(0, tmp_path)
    assert len(kills)==1 and 'weights' in wrong or 'optimizer' in wrong or 'history' in wrong

# --- What was found

x,y = torch.arange(48.).view(24, 2)/48,torch.arange(24)%2

class Stream(IterableDataset):
    def __iter__(self): return iter(zip(x, y))

class StopAt(Subscriber):
    "Ends the process, so to say, in the fit that it is given to"
    class Stopped(BaseException): pass
    def __init__(self, event, n=1): self.left = n; setattr(self, event, self.go)
    def go(self, learn):
        self.left -= 1
        if not self.left: raise self.Stopped

def learner(folder, dls, *subs):
    set_seed(0)
    learn = Learner(nn.Sequential(nn.Linear(2, 4), nn.Dropout(.2), nn.Linear(4, 2)), dls, F.cross_entropy, torch.optim.SGD, .1, [*subs, CheckpointS(folder, every=1)])
    learn.quiet = True
    return learn

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def ours(ds=None): return DataLoaders.from_datasets(ds or TensorDataset(x, y), None, 8, seed=0)

def test_a_stretch_that_ends_with_the_pass(tmp_path):
    "The run was saved where both a stretch of `fit(steps=)` and the pass of the loader have no batch left"
    def script(folder, *subs): learn = learner(folder, ours(Stream())); learn.fit(steps=6, valid_every=3, valid=False, subs=subs); return weights(learn)
    with pytest.raises(StopAt.Stopped): script(tmp_path/'a', StopAt('after_epoch'))
    assert torch.equal(script(tmp_path/'a'), script(tmp_path/'b'))

@pytest.mark.parametrize('event', ['before_fit', 'after_batch'])
def test_a_fit_after_one_that_ended_within_a_pass(tmp_path, event):
    "Whether this process or an earlier one made the steps of the first fit: the second begins with a new pass"
    def script(folder, *subs):
        learn = learner(folder, ours())
        learn.fit(steps=5, valid=False)
        learn.fit(2, valid=False, subs=subs)
        return weights(learn)
    with pytest.raises(StopAt.Stopped): script(tmp_path/'a', StopAt(event))
    assert torch.equal(script(tmp_path/'a'), script(tmp_path/'b'))

def test_a_timer_leaves_the_order_of_clean_up_as_it_is(tmp_path):
    order = []
    class First(Subscriber):
        def cleanup_fit(self, learn): order.append('first')
    class Last(First):
        order = 5
        def cleanup_fit(self, learn): order.append('last')
    learner(tmp_path, ours(), TimerS(), First(), Last()).fit(1, valid=False)
    assert order==['last', 'first']

def test_interrupted_while_the_run_is_described(tmp_path):
    class Rows(TensorDataset):
        def __getitem__(self, i):
            if self.interrupt: raise KeyboardInterrupt
            return super().__getitem__(i)
    rows = Rows(x, y)
    rows.interrupt = False
    learn = learner(tmp_path, DataLoaders.from_datasets(rows, None, 8, cache=False))
    rows.interrupt = True
    with pytest.raises(KeyboardInterrupt): learn.fit(1, valid=False)

def test_a_folder_is_free_again_after_an_error(tmp_path):
    "Also while the error, and with it the frames that it passed through, is still held, as notebooks do"
    def full(name, paths, call):
        if name=='write': raise OSError(28, 'No space left on device', str(paths[0]))
        return call()
    learn = learner(tmp_path, ours())
    with watched(tmp_path, full), pytest.raises(OSError, match='No space') as held: learn.fit(1, valid=False)
    learn.fit(1, valid=False)
    assert held

@pytest.mark.parametrize('make,first,second', [(lambda: NormalizationS(.5, .3), 1, 1), (lambda: SchedulerS(one_cycle), 3, 2)],
    ids=['what a subscriber keeps for speed is no setting', 'a schedule of another length, which the checkpoint of the second fit holds'])
def test_two_fits_killed_in_the_second(tmp_path, make, first, second):
    "The second fit of a script is described alike, whether this process made the first one or an earlier one"
    def script(folder, *subs):
        learn = learner(folder, ours(), make())
        learn.fit(first, valid=False)
        learn.fit(second, valid=False, subs=subs)
        return weights(learn)
    with pytest.raises(StopAt.Stopped): script(tmp_path/'a', StopAt('after_batch', 2))
    assert torch.equal(script(tmp_path/'a'), script(tmp_path/'b'))

def test_a_tracked_run_keeps_its_numbers(tmp_path):
    "A validation that comes after the resume has the step of the last training batch, whose numbers are there already"
    def script(name, *subs):
        track = TrackerS(f"csv:{tmp_path/'logs'}", 1, name=name)
        track.figures = lambda learn: None
        learner(tmp_path/name, DataLoaders.from_datasets(TensorDataset(x, y), TensorDataset(x, y), 8, seed=0), track).fit(1, subs=subs)
        return sorted(r for r in read_log(tmp_path/'logs'/name/'metrics.csv') if 'second' not in r[1])
    with pytest.raises(StopAt.Stopped): script('a', StopAt('before_epoch', 2))
    assert script('a')==script('b')
