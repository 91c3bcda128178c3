"""The public API of the original stays as it was: names, signatures, what is printed."""
import inspect, re
from types import SimpleNamespace

import pytest, torch, torch.nn.functional as F
from torch import nn
import nntrain.learner as nl
from nntrain.learner import *  # noqa: F403
from nntrain.learner import CancelFitException, DeviceS, Learner, LRFindS, MetricsS, MomentumLearner, ProgressS, PublishEvents, Subscriber, device

def params(f): return list(inspect.signature(f).parameters)
def positional(f):
    "Name → default of the arguments that may be given by position, without `self`"
    return {k: p.default for k, p in inspect.signature(f).parameters.items() if k != 'self' and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}

def toy(n=40, bs=8):
    torch.manual_seed(0)
    x, y = torch.randn(n, 5), torch.arange(n) % 3
    return SimpleNamespace(train=list(zip(x.split(bs), y.split(bs))), valid=list(zip(x.split(2*bs), y.split(2*bs))))

def get_learner(subs=(), cls=Learner, **kw):
    torch.manual_seed(1)
    return cls(nn.Linear(5, 3), toy(), F.cross_entropy, torch.optim.SGD, 0.1, list(subs), **kw)

def test_names():
    want = {'device', 'CancelFitException', 'CancelEpochException', 'CancelBatchException', 'PublishEvents', 'Learner', 'Subscriber', 'MetricsS',
            'DeviceS', 'LRFindS', 'MomentumLearner', 'ProgressS'}
    assert want <= set(nl.__all__)
    assert all(v is not None for k, v in vars(nl).items() if k in nl.__all__)
    assert isinstance(device, torch.device)

def test_signatures():
    assert list(positional(Learner.__init__)) == ['model', 'dls', 'loss_fn', 'optim_class', 'lr', 'subs']
    assert positional(Learner.fit) == dict(epochs=None, train=True, valid=True, subs=[], lr=None)
    assert list(positional(MomentumLearner.__init__))[:7] == ['model', 'dls', 'loss_fn', 'optim_class', 'lr', 'subs', 'mom']
    assert positional(MomentumLearner.__init__)['mom'] == 0.85
    assert positional(LRFindS.__init__) == dict(mult=1.25)
    assert positional(ProgressS.__init__) == dict(plot=False)
    assert list(positional(DeviceS.__init__)) == ['device']
    for o in ('one_epoch', 'one_batch', 'publish', 'predict', 'get_loss', 'backward', 'step', 'zero_grad'): assert callable(getattr(Learner, o))
    assert params(Learner.one_epoch) == ['self', 'train'] and params(Learner.publish) == ['self', 'event']
    assert Subscriber.order == 0 and ProgressS.order == MetricsS.order+1
    assert PublishEvents('fit').name == 'fit'

def test_log_format(capsys):
    "L20: a dictionary of strings for each pass"
    from torcheval.metrics import MulticlassAccuracy
    get_learner([MetricsS(accuracy=MulticlassAccuracy())]).fit(1)
    lines = capsys.readouterr().out.splitlines()
    number = r"'\d+\.\d{3}'"
    for line, mode in zip(lines, ('train', 'eval'), strict=True):
        assert re.fullmatch(rf"{{'epoch': 0, 'mode': '{mode}', 'loss': {number}, 'accuracy': {number}}}", line)

def test_dummy_subscriber(capsys):
    "L11 and L12: what the post's subscribers print"
    class DummyS(Subscriber):
        def before_fit(self, learn): print('before fit')
        def after_fit(self, learn): print('after fit')
        def before_epoch(self, learn): print('before epoch')
        def after_epoch(self, learn): print('after epoch')
    get_learner([DummyS()]).fit(1)
    assert capsys.readouterr().out == 'before fit\n' + 'before epoch\nafter epoch\n'*2 + 'after fit\n'
    class StopS(DummyS):
        def before_epoch(self, learn): raise CancelFitException
    get_learner([StopS()]).fit(5)
    assert capsys.readouterr().out == 'before fit\n'

def test_only_validation(capsys):
    "L14: the four switches"
    learn = get_learner()
    before = learn.model.weight.clone()
    learn.fit(2, train=False)
    assert torch.equal(learn.model.weight, before)
    learn.fit(1, True, False)
    assert not torch.equal(learn.model.weight, before)
    assert [r['mode'] for r in learn.history] == ['eval', 'eval', 'train']
    assert (learn.n_epochs, learn.epochs, learn.epoch) == (1, range(1), 0)

def test_flags_inside_a_pass():
    "L15: mode and gradients are right in each pass"
    seen = []
    class LookS(Subscriber):
        def after_predict(self, learn): seen.append((learn.model.training, torch.is_grad_enabled(), learn.preds.requires_grad, learn.dl is learn.dls.train))
    get_learner([LookS()]).fit(1)
    assert set(seen) == {(True, True, True, True), (False, False, False, False)}

def test_golden_event_list():
    "L16: the events within a batch, with the five steps"
    seen = []
    class L(Learner): pass
    for o in ('predict', 'get_loss', 'backward', 'step', 'zero_grad'):
        def f(self, o=o): seen.append(o); getattr(Learner, o)(self)
        setattr(L, o, f)
    class RecS(Subscriber): pass
    for o in ('before_batch', 'after_predict', 'after_loss', 'after_backward', 'after_step', 'after_batch'):
        setattr(RecS, o, lambda self, learn, o=o: seen.append(o))
    learn = get_learner([RecS()], L)
    learn.dls = SimpleNamespace(train=learn.dls.train[:1], valid=learn.dls.valid[:1])
    learn.fit(1)
    train = 'before_batch predict after_predict get_loss after_loss backward after_backward step after_step zero_grad after_batch'.split()
    assert seen == train+'before_batch predict after_predict get_loss after_loss after_batch'.split()

@pytest.mark.parametrize('kind', [list, tuple, lambda o: dict(zip('xy', o))])
def test_losses_are_weighted_by_samples(kind):
    "L5: the loss of a pass is that of the whole set, though the last batch is shorter"
    learn = get_learner([MetricsS()])
    batches = [kind((x, y)) for x, y in zip(torch.cat([b[0] for b in toy().train]).split(7), torch.cat([b[1] for b in toy().train]).split(7))]
    learn.dls = SimpleNamespace(train=batches, valid=batches)
    learn.fit(1, train=False)
    x, y = (torch.cat([list(b.values())[i] if isinstance(b, dict) else b[i] for b in batches]) for i in (0, 1))
    assert learn.history[0]['loss'] == pytest.approx(F.cross_entropy(learn.model(x), y).item(), abs=1e-6)
    assert learn.history[0]['samples'] == 40

def test_momentum_learner_with_frozen_layer():
    "L24"
    learn = get_learner(cls=MomentumLearner)
    learn.model.weight.requires_grad_(False)
    learn.fit(1)
    assert learn.mom == 0.85

def test_wrapped_methods_keep_their_names():
    assert (Learner.one_batch.__name__, Learner._fit.__name__) == ('one_batch', '_fit')
    assert 'Predict' in Learner.one_batch.__doc__

def test_errors_in_a_custom_scope_are_not_hidden():
    class L(Learner):
        @PublishEvents('predict')
        def predict(self): raise OSError('the real cause')
    with pytest.raises(OSError, match='the real cause'): get_learner(cls=L).fit(1)

def test_metrics_output_is_given_back(capsys):
    "L26: ProgressS takes over the output of the metrics and must not keep it"
    m = MetricsS()
    learn = get_learner([m])
    learn.fit(1, subs=[ProgressS(display='log')])
    assert capsys.readouterr().out.startswith('epoch')
    learn.fit(1)
    assert capsys.readouterr().out.startswith("{'epoch'")

