"""The contract of the library: which events are published, in which order, whatever happens on the way.

A fit of one epoch, one training batch and one validation batch; at each of its events in turn, each kind of exception is
raised. Short names: `bf` is before_fit, `ae` after_epoch, `cb` cleanup_batch; `ap al ag` are after_predict, after_loss and
after_backward (the gradients), `bs as cs` before_step, after_step and cleanup_step; capitals are validation."""
import copy, re
from operator import attrgetter
from types import SimpleNamespace

import pytest, torch, torch.nn.functional as F
from torch import nn
from nntrain.events import EVENTS, Subscriber
from nntrain.learner import CancelBatchException, CancelEpochException, CancelFitException, CancelStepException, Learner

LONG = dict(bf='before_fit', be='before_epoch', bb='before_batch', ap='after_predict', al='after_loss', ag='after_backward', ab='after_batch',
            cb='cleanup_batch', ae='after_epoch', ce='cleanup_epoch', af='after_fit', cf='cleanup_fit', bs='before_step', cs='cleanup_step') | {'as': 'after_step'}
SHORT = {v: k for k, v in LONG.items()}
NORMAL = 'bf be bb ap al ag bs as cs ab cb ae ce BE BB AP AL AB CB AE CE af cf'.split()

# What follows the event at which the exception was raised, in training and in validation, until the fit is over.
VALID = 'BE BB AP AL AB CB AE CE af cf'                   # the validation pass that comes after a training pass
AFTER_BATCH, AFTER_EPOCH = 'ae ce '+VALID, VALID          # how a fit goes on after a training batch, after a training pass
IN_STEP, IN_BATCH, IN_EPOCH = 'bs as'.split(), 'bb ap al ag ab'.split(), 'be ae'.split()
VIN_BATCH, VIN_EPOCH = 'BB AP AL AB'.split(), 'BE AE'.split()

def rest(kind, at):
    "The events after `at`, written out for each level; and whether the exception comes out of `fit`"
    if at in IN_STEP:                                     # a cancelled step: the batch completes
        return {'step': ('cs ab cb '+AFTER_BATCH, False), 'batch': ('cs cb '+AFTER_BATCH, False), 'epoch': ('cs cb ce '+AFTER_EPOCH, False),
                'fit': ('cs cb ce cf', False)}.get(kind, ('cs cb ce cf', True))
    if at in IN_BATCH:
        return {'batch': ('cb '+AFTER_BATCH, False), 'epoch': ('cb ce '+AFTER_EPOCH, False), 'fit': ('cb ce cf', False)}.get(kind, ('cb ce cf', True))
    if at in VIN_BATCH:
        return {'batch': ('CB AE CE af cf', False), 'epoch': ('CB CE af cf', False), 'fit': ('CB CE cf', False)}.get(kind, ('CB CE cf', True))
    if at in IN_EPOCH:                                    # there is no batch to cancel any more
        return {'epoch': ('ce '+AFTER_EPOCH, False), 'fit': ('ce cf', False)}.get(kind, ('ce cf', True))
    if at in VIN_EPOCH: return {'epoch': ('CE af cf', False), 'fit': ('CE cf', False)}.get(kind, ('CE cf', True))
    if at in ('bf', 'af'): return {'fit': ('cf', False)}.get(kind, ('cf', True))
    # a failing clean-up: it is over there, and every level above cleans up; a cancel of a level above still means that level
    if at == 'cs': return {'batch': ('cb '+AFTER_BATCH, False), 'epoch': ('cb ce '+AFTER_EPOCH, False), 'fit': ('cb ce cf', False)}.get(kind, ('cb ce cf', True))
    if at == 'cb': return {'epoch': ('ce '+AFTER_EPOCH, False), 'fit': ('ce cf', False)}.get(kind, ('ce cf', True))
    if at == 'CB': return {'epoch': ('CE af cf', False), 'fit': ('CE cf', False)}.get(kind, ('CE cf', True))
    if at in ('ce', 'CE'): return {'fit': ('cf', False)}.get(kind, ('cf', True))
    return '', True                                       # cleanup_fit: nothing is left to do

KINDS = dict(step=CancelStepException, batch=CancelBatchException, epoch=CancelEpochException, fit=CancelFitException, error=ValueError, ctrl_c=KeyboardInterrupt)

class Recorder(Subscriber):
    "Writes down every event; raises `exc` at the event `at`"
    def __init__(self, at=None, exc=None): self.at, self.exc, self.seen = at, exc, []
    def __getattribute__(self, name):
        if name not in SHORT: return object.__getattribute__(self, name)
        def f(learn):
            short = SHORT[name] if learn.training or name.endswith('_fit') else SHORT[name].upper()
            self.seen.append(short)
            if short == self.at: raise self.exc
        return f

def get_learner(subs):
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    return Learner(nn.Linear(3, 2), SimpleNamespace(train=[(x, y)], valid=[(x, y)]), F.cross_entropy, torch.optim.SGD, 0.1, subs)

def test_all_events_are_covered():
    assert {LONG[o.lower()] for o in NORMAL} == set(EVENTS) == {o for o in vars(Subscriber) if o.startswith(('before', 'after', 'cleanup'))}

def test_the_picture_of_the_timeline():
    "20_events draws one pass from `EVENTS`: every event once, at its level, in the order in which a fit publishes them"
    assert [SHORT[e] for e in EVENTS] == [o for o in NORMAL if o.islower()]
    assert [SHORT[e] for e, level in EVENTS.items() if level==3] == 'ap al ag bs as cs'.split()

def test_a_cancelled_pass():
    "It leaves no row in `history`; after a training pass validation still runs"
    class CancelS(Subscriber):
        def after_loss(self, learn):
            if learn.model.training: raise CancelEpochException
    learn = get_learner([CancelS()])
    learn.fit(2)
    assert [(r['epoch'], r['mode']) for r in learn.history] == [(0, 'eval'), (1, 'eval')]

def test_normal():
    rec = Recorder()
    get_learner([rec]).fit(1)
    assert rec.seen == NORMAL

@pytest.mark.parametrize('at', NORMAL)
@pytest.mark.parametrize('kind', KINDS)
def test_outcome(kind, at):
    exc = KINDS[kind]('here')
    rec = Recorder(at, exc)
    learn = get_learner([rec])
    after, raised = rest(kind, at)
    if raised:
        with pytest.raises(type(exc)) as e: learn.fit(1)
        assert e.value is exc
    else: learn.fit(1)
    assert rec.seen == NORMAL[:NORMAL.index(at)+1]+after.split()
    assert (learn.subs, [p.grad for p in learn.model.parameters()], learn.model.training) == ([rec], [None, None], True)
    rec.at = None                                         # and the next fit works
    rec.seen.clear()
    learn.fit(1)
    assert rec.seen == NORMAL

@pytest.mark.parametrize('level', ['cb', 'ce', 'cf'])
def test_failing_cleanup(level):
    "Last first; the others still run; the training error is the context of the clean-up's, and each has a note"
    order = []
    def sub(name, err=None):
        def f(self, learn):
            order.append(name)
            if err: raise err
        return type(name, (Subscriber,), {LONG[level]: f})()
    boom = Recorder('al', ValueError('training'))
    learn = get_learner([sub('first'), sub('second', OSError('second')), sub('third', OSError('third')), boom])
    with pytest.raises(OSError, match='second') as e: learn.fit(1)
    assert order == ['third', 'second', 'first']
    chain = [e.value, e.value.__context__, e.value.__context__.__context__]
    assert [str(o) for o in chain] == ['second', 'third', 'training']
    assert [o.__notes__[0] for o in chain[:2]] == [f'nntrain: in {LONG[level]} of {o}' for o in ('second', 'third')]
    assert chain[2].__notes__[0].startswith('nntrain: in after_loss of ')
    assert boom.seen[-3:] == ['cb', 'ce', 'cf']

def test_a_cancelled_step_keeps_the_gradients():
    "The weights stay, the loss counts, and the next batch adds to what is there"
    grads = []
    class SkipS(Subscriber):
        def before_step(self, learn):
            if learn.batch_idx==0: raise CancelStepException
        def cleanup_batch(self, learn):
            if learn.training: grads.append(None if learn.model.weight.grad is None else learn.model.weight.grad.clone())
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    learn = Learner(nn.Linear(3, 2), SimpleNamespace(train=[(x, y), (x, y)], valid=None), F.cross_entropy, torch.optim.SGD, 0.1, [SkipS()])
    want = [p.detach()-0.2*g for p, g in zip(learn.model.parameters(), torch.autograd.grad(F.cross_entropy(learn.model(x), y), learn.model.parameters()))]
    learn.fit(1, valid=False)
    assert grads[0] is not None and grads[1] is None
    assert all(torch.allclose(p, w, atol=1e-6) for p, w in zip(learn.model.parameters(), want))
    assert learn.history[0]['samples'] == 8

def test_subs_are_fixed_during_a_fit():
    class AddS(Subscriber):
        def before_batch(self, learn): learn.subs.append(Recorder())
    learn = get_learner([AddS()])
    with pytest.raises(RuntimeError, match="can't be changed within a fit"): learn.fit(1)
    assert len(learn.subs) == 1

def test_order_and_ties():
    order = []
    def sub(name, n): return type(name, (Subscriber,), dict(order=n, before_fit=lambda self, learn: order.append(name), cleanup_fit=lambda self, learn: order.append(name)))()
    get_learner([sub('b1', 0), sub('c', 5), sub('b2', 0), sub('a', -5)]).fit(0)
    assert order == ['a', 'b1', 'b2', 'c', 'c', 'b2', 'b1', 'a']

def test_a_copied_learner_has_its_own_subscribers():
    class CountS(Subscriber):
        n = 0
        def after_batch(self, learn): self.n += 1
    learn = get_learner([CountS()])
    learn.fit(1)
    other = copy.deepcopy(learn)
    other.fit(1)
    assert (learn.subs[0].n, other.subs[0].n) == (2, 4)

def test_what_the_docs_promise_on_the_learner_is_there():
    "Each name in the docstring of Subscriber, in the middle of a batch"
    names = [n for n in re.findall(r'`([\w.]+)`', Subscriber.__doc__.split('\n\n')[1])]
    assert len(names) > 10
    class LookS(Subscriber):
        order,looks = 9,0
        def after_batch(self, learn): self.looks += 1; assert all(attrgetter(n)(learn) is not None for n in names if n not in ('order', 'param_groups'))
    look,batch = LookS(),(torch.zeros(2,3), torch.zeros(2).long())
    Learner(nn.Linear(3,2), SimpleNamespace(train=[batch], valid=[batch]), F.cross_entropy, torch.optim.SGD, .1, [look]).fit(1)
    assert look.looks==2
