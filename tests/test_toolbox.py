"""What holds for every subscriber of the toolbox: its state can be saved, no batch waits for the device, an error leaves nothing behind"""
import io
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock
import pytest, torch, torch.nn.functional as F
from nntrain.acceleration import AugmentS, GradAccumS, GradClipS, MixedPrecisionS, NormalizationS
from nntrain.average import EMAS
from nntrain.core import freeze, set_seed, thaw
from nntrain.events import CancelBatchException, CancelFitException, CancelStepException, Subscriber
from nntrain.inspect import ActivationStatsS, ShortRunS, TimerS
from nntrain.learner import Learner, MetricsS
from nntrain.models import cnn, conv_block
from nntrain.schedule import EarlyStoppingS, SchedulerS, Trace, one_cycle, warmup_cosine

def noise(x): return x+.1*torch.randn_like(x)
makers = dict(accum=lambda: GradAccumS(3), clip=lambda: GradClipS(1.), ema=lambda: EMAS(.9), augment=lambda: AugmentS(noise), normal=lambda: NormalizationS(.5, .3),
              cycle=lambda: SchedulerS(one_cycle), cosine=lambda: SchedulerS(warmup_cosine), epoch=lambda: SchedulerS(lambda o: torch.optim.lr_scheduler.StepLR(o, 1), step='epoch'),
              plateau=lambda: SchedulerS(torch.optim.lr_scheduler.ReduceLROnPlateau, step='loss'), stop=lambda: EarlyStoppingS(restore_best=False), bf16=lambda: MixedPrecisionS(torch.bfloat16))
half = dict(fp16=lambda: MixedPrecisionS(torch.float16))
others = dict(timer=TimerS, short=lambda: ShortRunS(2), metrics=MetricsS)

def data(n=10): g = torch.Generator().manual_seed(0); return [(torch.rand(8,1,8,8, generator=g), torch.randint(0, 10, (8,), generator=g)) for _ in range(n)]
def get_learner(subs, train=None, optim=torch.optim.AdamW):
    set_seed(0)
    learn = Learner(cnn(), SimpleNamespace(train=train or data(), valid=data(2)), F.cross_entropy, optim, .01, subs)
    learn.quiet = True
    return learn

class SaveAtS(Subscriber):
    "After training batch number `at`: take what a checkpoint would, and stop"
    order = 50
    def __init__(self, at, subs): self.at,self.subs,self.n = at,subs,0
    def after_batch(self, learn):
        if not learn.training: return
        self.n += 1
        if self.n==self.at:
            buf = io.BytesIO()
            torch.save(dict(model=learn.model.state_dict(), opt=learn.opt.state_dict(), grads=[p.grad for p in learn.model.parameters()], subs=[s.state_dict() for s in self.subs]), buf)
            self.saved = torch.load(io.BytesIO(buf.getvalue()), weights_only=True) # tensors and plain values only
            raise CancelFitException

class ResumeS(Subscriber):
    "Begin at batch `at` of all epochs, with a saved state. As a checkpoint would: when all have been set up"
    order = 50
    def __init__(self, saved, at, subs): self.saved,self.at,self.subs = saved,at,subs
    def before_fit(self, learn):
        learn.model.load_state_dict(self.saved['model']); learn.opt.load_state_dict(self.saved['opt'])
        for s,state in zip(self.subs, self.saved['subs']): s.load_state_dict(state)
        learn.epochs = range(self.at//10, learn.n_epochs)
    def before_epoch(self, learn):
        if learn.training and self.at%10:
            learn.dl = learn.dl[self.at%10:]; self.at = 0
            for p,g in zip(learn.model.parameters(), self.saved['grads']): p.grad = g

@pytest.mark.parametrize('at', [7, 14])
@pytest.mark.parametrize('names', [[k] for k in (makers | half)] + [list(makers), [k for k in makers if k not in ('plateau', 'epoch', 'cosine', 'bf16')]+['fp16']], ids='+'.join)
def test_resume(names, at):
    "Interrupted in the middle of an epoch and of a window, and taken up by fresh subscribers: the same weights, bit for bit"
    make = lambda: [(makers | half)[k]() for k in names]
    whole = get_learner(make()); whole.fit(3)
    subs = make(); save = SaveAtS(at, subs); get_learner([*subs, save]).fit(3)
    subs = make(); resumed = get_learner([*subs, ResumeS(save.saved, at, subs)]); resumed.fit(3)
    assert [k for k,v in whole.model.state_dict().items() if not torch.equal(v, resumed.model.state_dict()[k])] == []

@pytest.mark.parametrize('name', [*makers, *others, 'acts'])
def test_no_sync(name):
    "No batch asks a tensor for its value (float16 does, in torch's own scaler)"
    class ShutS(Subscriber):
        order,stack = -1000,ExitStack()
        def before_batch(self, learn):
            def shut(*args, **kwargs): raise AssertionError('a batch asked for a value')
            self.stack = ExitStack()
            for o in ('item', 'cpu', 'tolist', '__float__', '__bool__', '__int__', 'numpy'): self.stack.enter_context(mock.patch.object(torch.Tensor, o, shut))
            self.stack.enter_context(mock.patch.object(torch.Tensor, 'is_cpu', False)) # as on a GPU, where a loss isn't read
        def cleanup_batch(self, learn): self.stack.close()
    learn = get_learner([ShutS()], optim=torch.optim.SGD)
    learn.subs.append(ActivationStatsS(learn.model) if name=='acts' else (makers | others)[name]())
    learn.fit(2)
    assert len(learn.history)==4

@pytest.mark.parametrize('event', ['before_fit', 'before_epoch', 'before_batch', 'after_predict', 'after_loss', 'after_backward', 'before_step', 'after_step', 'cleanup_step', 'after_batch', 'after_epoch'])
@pytest.mark.parametrize('err', [ValueError, CancelFitException, KeyboardInterrupt])
def test_no_trace(event, err):
    "However a fit ends: no hooks, no methods in place of the learner's, no autocast"
    def boom(learn): raise err('boom')
    def fails(order): s = Subscriber(); s.order = order; setattr(s, event, boom); return s
    for order in (-1000, 1000):
        learn = get_learner([(makers | half | others)[k]() for k in ('accum', 'clip', 'ema', 'fp16', 'timer', 'short', 'cycle')])
        learn.subs.append(ActivationStatsS(learn.model)); known = set(vars(learn))|{'schedule', 'grad_clip', 'metrics', 'n_epochs', 'epochs', 'trains', 'dl', 'batch', 'preds', 'loss', '_listeners'}
        try: learn.fit(1, subs=[fails(order)])
        except err: pass
        assert set(vars(learn)) <= known
        assert not any(m._forward_hooks for m in learn.model.modules()) and not torch.is_autocast_enabled('cpu')

@pytest.mark.parametrize('exc', [CancelBatchException, CancelStepException])
@pytest.mark.parametrize('event', ['after_backward', 'before_step', 'after_step'])
@pytest.mark.parametrize('stream', [False, True])
def test_a_window_may_be_left_out(event, exc, stream):
    "Whichever batch of a window another subscriber cancels: the exception stays in the fit, and each pass has its row"
    if (event, exc)==('after_backward', CancelStepException): pytest.skip('no step to cancel there')
    class StreamDL:
        def __iter__(self): return iter(data(4))
    for at in range(4):
        class LeaveOutS(Subscriber):
            order = 5
        def leave(learn, at=at):
            if learn.batch_idx==at: raise exc
        s = LeaveOutS(); setattr(s, event, leave)
        learn = get_learner([GradAccumS(3), s, GradClipS(1.), MixedPrecisionS(torch.float16)], StreamDL() if stream else data(4))
        learn.fit(2)
        assert len(learn.history)==4 and not learn.fitting

def test_a_model_wrapped_in_before_fit():
    "Accumulation, clipping and scaling work on the parameters that the fit trains, not on those that it was given"
    class WrapS(Subscriber):
        order = 7
        def before_fit(self, learn):
            if isinstance(learn.model, Twice): return
            learn.model = Twice(learn.model)
            learn.opt = torch.optim.SGD(learn.model.parameters(), .01)
    class Twice(torch.nn.Module):
        "The same weights, as new parameters"
        def __init__(self, m): super().__init__(); set_seed(0); self.m = cnn()
        def forward(self, x): return self.m(x)
    def subs(): return [GradAccumS(3), GradClipS(), MixedPrecisionS(torch.float16)]
    a,b = get_learner([*subs(), WrapS()], optim=torch.optim.SGD),get_learner(subs(), optim=torch.optim.SGD)
    a.fit(2); b.fit(2)
    assert all(torch.equal(p, q) for p,q in zip(a.model.parameters(), b.model.parameters()))

def test_records_for_plots_stay_small(monkeypatch):
    "Learning rates and norms of a long run: few values, each at its step, in memory and in the checkpoint, interrupted or not"
    def run(*extra): learn = get_learner([s := SchedulerS(warmup_cosine), c := GradClipS(1.), *extra]); learn.fit(3); return learn,s,c
    _,s,c = run()
    lrs,norms = s.lrs,c.norms
    assert len(lrs)==len(norms)==30
    monkeypatch.setattr(Trace, 'most', 8)
    learn,s,c = run()
    assert len(s.lrs) < 8 and s.lrs==lrs[::s.lrs.every] and c.norms==norms[::s.lrs.every]
    assert len(s.state_dict()['lrs']['values']) < 8 and len(c.state_dict()['norms']['values']) < 8
    for ax in (learn.plot_lr(), learn.plot_grad_norm()): assert list(ax.lines[0].get_xdata())==list(range(0, 30, s.lrs.every))
    subs = [SchedulerS(warmup_cosine), GradClipS(1.)]; save = SaveAtS(14, subs); get_learner([*subs, save]).fit(3)
    subs = [SchedulerS(warmup_cosine), GradClipS(1.)]; get_learner([*subs, ResumeS(save.saved, 14, subs)]).fit(3)
    assert (subs[0].lrs, subs[1].norms)==(s.lrs, c.norms)

@pytest.mark.parametrize('came', ['training', 'evaluation', 'back in training'])
def test_frozen(came):
    "A fit changes nothing in a frozen body, in whatever mode the model was; once thawed, it is trained like any other"
    def state(m): return {k: t.clone() for k,t in m.state_dict().items()}
    def equal(a, b): return all(torch.equal(a[k], b[k]) for k in a)
    learn = get_learner([])
    learn.model = torch.nn.Sequential(torch.nn.Sequential(conv_block(1, 4), torch.nn.Dropout(.5), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), torch.nn.Linear(4, 10))
    if came=='evaluation': learn.model.eval()
    body,head = learn.model
    assert freeze(body) is body
    if came=='back in training': learn.model.train()
    before,modes = state(learn.model),[m.training for m in learn.model.modules()]
    class ModesS(Subscriber):
        def after_batch(self, learn): assert not any(m.training for m in body.modules()) and head.training==learn.training
    learn.fit(2, subs=[ModesS()])
    assert equal({k: t for k,t in before.items() if k.startswith('0.')}, state(learn.model)) and not torch.equal(before['1.weight'], head.weight)
    assert modes==[m.training for m in learn.model.modules()]
    frozen = state(body)
    assert thaw(body) is body
    learn.fit(1)
    after = state(body)
    assert [k for k in after if torch.equal(frozen[k], after[k])]==[]
