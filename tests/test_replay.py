"`step_through`: a whole walk is the fit, bit for bit; wherever it is left, nothing stays behind: no change and no thread"
import gc, signal, subprocess, sys, threading, time
import pytest, torch
from test_explain import LOG, deep, differ, fitted, make, run, same
from nntrain.events import EVENTS
from nntrain.learner import MetricsS, Subscriber
from nntrain.replay import step_through

def threads(): return [t for t in threading.enumerate() if t.name=='steps']
def left(learn):
    "All that there is, now"
    return run(learn, lambda: None) | dict(subs=[deep(vars(s)) for s in learn.subs])

@pytest.mark.parametrize('name', ['bare', 'momentum', 'rich', 'stops', 'cancels_batches', 'own_step', 'dicts'])
def test_a_walk_is_the_fit_and_leaves_no_trace(name):
    want,(learn,args,kw) = fitted(name),make(name)
    learn.quiet = True
    start = left(learn)
    with step_through(learn, *args, **kw) as s:
        places = [s.next()]
        while (p := s.next()).event!='cleanup_fit': places.append(p)
        assert same(deep(learn.model.state_dict()), want['weights']) and same(deep(learn.history), want['learner']['history']) and same(deep(learn.opt), want['learner']['opt'])
        assert s.next() is None and s.place is None
    assert not differ(start, left(learn)) and not threads()
    assert {p.event for p in places} | {'cleanup_fit'}==set(EVENTS) - ({'after_fit'} if name=='stops' else set())

@pytest.mark.parametrize('event', EVENTS)
def test_it_can_be_left_anywhere(event):
    learn,args,kw = make('rich')
    learn.quiet = True
    start = left(learn)
    with step_through(learn, 1) as s: assert s.next(event).event==event
    assert not differ(start, left(learn)) and not threads() and not learn.fitting

def test_errors():
    learn,_,_ = make('usual')
    start = left(learn)
    with pytest.raises(ZeroDivisionError), step_through(learn) as s: # in the block
        s.next('after_loss')
        1/0
    assert not differ(start, left(learn)) and not threads()
    learn,_,_ = make('fails')
    start = left(learn)
    with pytest.raises(ValueError, match='b') as e, step_through(learn, 1) as s: # in the fit; its clean-ups can be walked through
        while s.next(): pass
    assert str(e.value.__context__)=='boom' and not threads()
    LOG.clear()
    with pytest.raises(ValueError, match='b'):
        with step_through(learn) as s: s.next('before_batch') # in a clean-up, at the end
    LOG.clear()
    assert not differ(start, left(learn)) and not threads()
    learn,_,_ = make('usual')
    with step_through(learn) as s: # in what was asked
        s.next('after_loss')
        with pytest.raises(ZeroDivisionError): s.call(lambda learn: 1/0)
        assert s.place.event=='after_loss' and s.call(lambda l: l is learn)
        with pytest.raises(RuntimeError, match='outside'): s.call(lambda learn: s.next())
        with pytest.raises(ValueError, match='event'): s.next('after_lunch')
        with pytest.raises(RuntimeError, match='in the middle'): learn.fit(1)
        with pytest.raises(RuntimeError, match='in the middle'): step_through(learn)

def test_a_fit_that_nobody_walks_through_or_everybody_forgets():
    learn,_,_ = make('usual')
    start = left(learn)
    step_through(learn).close()
    s = step_through(learn)
    s.next('after_backward')
    assert threads()
    del s
    gc.collect()
    for _ in range(200):
        if not threads(): break
        time.sleep(.02)
    assert not threads() and not differ(start, left(learn))

def test_events_of_listeners_and_of_those_who_look_are_no_places():
    class PredsS(Subscriber):
        def after_epoch(self, learn):
            if learn.training: learn.get_preds()
    learn,_,_ = make('bare')
    learn.subs = [PredsS(), MetricsS()]
    with step_through(learn) as s:
        events = [(s.next('before_batch') and 0, learn.get_preds().shape[0])]
        assert events==[(0, 40)] and s.next().event=='after_predict'
        while s.next().event!='after_epoch': pass
        assert s.next().event=='cleanup_epoch'

def test_what_belongs_to_a_thread():
    learn,_,_ = make('bare')
    with torch.no_grad(), step_through(learn) as s:
        s.next('after_predict')
        assert not torch.is_grad_enabled() and s.call(lambda learn: torch.is_grad_enabled()) and learn.preds.requires_grad

@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='this system has no such timer')
def test_ctrl_c():
    class SlowS(Subscriber):
        def after_loss(self, learn): time.sleep(.3)
    learn,_,_ = make('bare')
    learn.subs = [SlowS()]
    start = left(learn)
    with step_through(learn) as s:
        signal.setitimer(signal.ITIMER_REAL, .1)
        old = signal.signal(signal.SIGALRM, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt): s.next('after_loss')
        signal.signal(signal.SIGALRM, old)
        assert s.next().event=='after_loss', 'what was asked for is waited for'
    assert not differ(start, left(learn)) and not threads()

def test_python_ends_while_a_fit_waits():
    code = """import torch
from types import SimpleNamespace
from nntrain.learner import Learner
from nntrain.replay import step_through
dl = [(torch.ones(2, 1), torch.ones(2, 1))]
s = step_through(Learner(torch.nn.Linear(1, 1), SimpleNamespace(train=dl, valid=None), torch.nn.functional.mse_loss, torch.optim.SGD, .1), valid=False)
print(s.next('after_loss').event)"""
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert res.stdout.strip()=='after_loss' and not res.returncode and not res.stderr, res.stderr
