"""`record`: what is kept of a fit is what happened in it, nothing is left behind; and what shows it: page, picture, terminal.
What the player does in a browser is tested in `tests/browser/test_walk.py`."""
import json, os, re, sys, xml.etree.ElementTree as ET
from pathlib import Path
import pytest, torch, torch.nn.functional as F
from html.parser import HTMLParser
from types import SimpleNamespace
from test_explain import Kept, deep, differ, make, run
import nntrain
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import CancelBatchException, CancelEpochException, CancelFitException
from nntrain.learner import Learner, PublishEvents, Subscriber
from nntrain.player import about, record, replay, thumbnails

def left(learn):
    "All that there is, now"
    Kept.subs = ()
    return run(learn, lambda: None) | dict(subs=[deep(vars(s)) for s in learn.subs], keys=sorted(vars(learn)), cls=type(learn))

def quiet(name):
    learn,args,kw = make(name)
    learn.quiet = True
    return learn,kw

@pytest.fixture(scope='module')
def learn(): return quiet('usual')[0]
@pytest.fixture(scope='module')
def rec(learn): return seeded(learn)
@pytest.fixture(scope='module')
def cancelled(learn): return seeded(learn, cancel=('after_loss', 1))

def seeded(learn, **ask):
    set_seed(1) # there is dropout in the model
    return learn.record(**ask)

def events(rec, *keys): return [(f['event'], *(f.get(k) for k in keys)) for f in rec.frames]
def marks(rec): return [(f['event'], k, f[k]) for f in rec.frames for k in ('raised', 'caught', 'flying') if k in f]

# ---- what is recorded
@pytest.mark.parametrize('name', ['bare', 'momentum', 'rich', 'stops', 'cancels_batches', 'own_step', 'dicts', 'fails'])
def test_no_trace(name):
    learn,kw = quiet(name)
    start = left(learn)
    for ask in ({}, dict(cancel=('after_loss', 0)), dict(fail=('before_batch', 1))): record(learn, 2, **ask, **kw)
    assert not differ(start, left(learn))

def test_no_trace_of_a_fitted_learner(learn):
    learn,_ = quiet('momentum')
    learn.fit(1)
    learn.model[0].weight.grad = torch.ones_like(learn.model[0].weight)
    start,old,tracer,grad = left(learn),sys.gettrace(),lambda *args: None,learn.model[0].weight.grad
    sys.settrace(tracer)
    try: rec,after = learn.record(),sys.gettrace()
    finally: sys.settrace(old)
    assert not differ(start, left(learn)) and after is tracer and learn.model[0].weight.grad is grad and bool((grad==1).all())
    assert 'preds' not in rec.frames[0]['set'] and not any('history' in f['set'] for f in rec.frames[:5]), 'what the fit before left is none of this one'
    class KeptS(Subscriber):
        n = 0
        def after_batch(self, learn): self.n += 1
    s = KeptS()
    assert any('KeptS' in f['listeners'] for f in learn.record(subs=[s]).frames) and s.n==0 and s not in learn.subs

def test_it_is_the_fit(learn, rec):
    "The numbers are those of a fit of these batches"
    other,_ = quiet('usual')
    seen = []
    class SeeS(Subscriber):
        order = 10**6
        def after_loss(self, learn): seen.append(learn.loss.item())
        def before_step(self, learn): seen.append(float(torch.stack([p.grad.norm() for p in learn.model.parameters()]).norm()))
    class TwoS(Subscriber):
        order = -9
        def before_epoch(self, learn): learn.dl = [b for b,_ in zip(learn.dl, range(2))]
    set_seed(1)
    other.fit(1, subs=[TwoS(), SeeS()])
    said = [f['set'][k][v] for f in rec.frames for k,v in (('loss', 'first'), ('gradients', 'norm')) if f['set'].get(k)]
    assert [o[0] if isinstance(o, list) else o for o in said]==pytest.approx(seen, rel=1e-6)
    rows = [f['set']['history']['row'] for f in rec.frames if 'history' in f['set']]
    assert [r['loss'] for r in rows]==pytest.approx([r['loss'] for r in other.history]) and all('seconds' not in r for r in rows)
    assert [r['samples'] for r in rows]==[r['samples'] for r in other.history]

def test_each_event_and_its_line(learn, rec):
    order = events(rec, 'epoch', 'training', 'batch')
    assert order[:5]==[('before_fit', None, None, None), ('before_epoch', 0, True, None), ('before_batch', 0, True, 0), ('after_predict', 0, True, 0), ('after_loss', 0, True, 0)]
    assert order[-1][0]=='cleanup_fit' and len(order)==37 and ('after_step', 0, False, 0) not in order
    lines = rec.code.splitlines()
    assert str(rec.code)==str(learn.explain(1, 'steps', events=True))
    for f in rec.frames: assert lines[f['line']-1].strip()=='# '+f['event'] and f['line'] not in f['ran']
    ran = {f['event']: [lines[n-1].strip() for n in f['ran']] for f in rec.frames if f.get('training')}
    assert ran['after_predict']==['if isinstance(learn.batch, (list, tuple)):', 'learn.preds = learn.model(*learn.batch[:learn.n_inp])']
    assert ran['after_backward']==['if learn.training:', 'learn.loss.backward()'] and 'metrics.after_batch(learn)' in ran['after_batch']
    who = {f['event']: f['listeners'] for f in rec.frames}
    assert who['before_fit']==['NaNStopS', 'MetricsS', 'DeviceS', 'ProgressS'] and who['cleanup_fit']==['ProgressS', 'NaNStopS'], 'clean-ups are last first'
    assert [f['where'] for f in rec.frames[:3]]==['', 'epoch 0, training', 'epoch 0, training, batch 0']

def test_what_changes(rec):
    named = {f['event']: [*f['set']] for f in rec.frames[:11]}
    assert named['before_batch']==['batch[0]', 'batch[1]'] and named['after_predict']==['preds'] and named['after_loss']==['loss'] and named['after_backward']==['gradients']
    assert named['after_step']==['weights'] and named['before_step']==[] and rec.frames[8]['set']=={'gradients': None}, 'zero_grad is before cleanup_step'
    x = rec.frames[2]['set']['batch[0]']
    assert x['shape']==[16, 6] and x['dtype']=='float32' and x['device']=='cpu' and len(x['first'])==6 and x['min'] < x['mean'] < x['max'] and x['text']=='16×6 float32'
    json.dumps(rec.frames)

held = []
class HeldS(Subscriber):
    def after_batch(self, learn): held.append(len(learn.mean_loss.values))

def test_a_look_changes_nothing():
    "The mean of the losses isn't added up by those who look at it"
    held.clear()
    quiet('bare')[0].record(3, valid=False, subs=[HeldS()])
    assert held==[1, 2, 3]

def test_about():
    assert about(torch.tensor([1., float('nan'), 2.]))['bad']==1 and 'not finite' in about(torch.tensor([1., float('nan')]))['more']
    assert about(torch.arange(9))['more']=='0 1 2 3 4 5 …' and about(torch.zeros(0))['shape']==[0] and about(torch.tensor(True))['text']=='1'
    assert about({'a': 1})=={'text': 'dict', 'more': ''} and len(about('x'*999)['text'])==60
    assert about(torch.ones(3, requires_grad=True).sum())['more']=='with its graph'
    for shape in ((2, 1, 8, 8), (20, 3, 90, 40)): assert len(thumbnails(torch.rand(shape))) < 12000

@pytest.mark.parametrize('ask,exc,way', [
    (dict(cancel=('after_loss', 1)), 'CancelBatchException', ['cleanup_batch']),
    (dict(cancel=('after_loss', 1, CancelEpochException)), 'CancelEpochException', ['cleanup_batch', 'cleanup_epoch']),
    (dict(cancel=('after_loss', 1, CancelFitException)), 'CancelFitException', ['cleanup_batch', 'cleanup_epoch', 'cleanup_fit']),
    (dict(cancel=('before_step', 1)), 'CancelStepException', ['cleanup_step']), (dict(cancel=('before_fit', 0)), 'CancelFitException', ['cleanup_fit']),
    (dict(cancel=('after_epoch', 0)), 'CancelEpochException', ['cleanup_epoch'])])
def test_cancel(learn, ask, exc, way):
    rec = learn.record(**ask)
    event,n = ask['cancel'][:2]
    assert marks(rec)==[(event, 'raised', exc), *((e, 'flying', exc) for e in way[:-1]), (way[-1], 'caught', exc)] and rec.error is None
    at = next(i for i,f in enumerate(rec.frames) if 'raised' in f)
    assert sum(f['event']==event for f in rec.frames[:at])==n and 'ends here' in rec.frames[at+len(way)]['note']

@pytest.mark.parametrize('ask', [('after_backward', 0), ('after_loss', 0, ), ('cleanup_batch', 1), ('cleanup_fit', 0)])
def test_fail(learn, ask):
    rec = learn.record(fail=ask)
    at = next(i for i,f in enumerate(rec.frames) if 'raised' in f)
    assert rec.frames[at]['raised']=='RuntimeError' and rec.frames[at]['event']==ask[0] and rec.error.startswith('RuntimeError: an error')
    assert all(f['flying']=='RuntimeError' and f['event'].startswith('cleanup_') for f in rec.frames[at+1:]) and rec.frames[-1]['event']=='cleanup_fit'
    assert 'The fit raised RuntimeError' in repr(rec)

def test_what_the_fit_itself_raises():
    "In a listener, in a step, and in a clean-up that follows; a cancel that a listener raises is seen where it was raised"
    learn,kw = quiet('fails')
    rec = learn.record(4, **kw)
    assert marks(rec)[0]==('after_backward', 'raised', 'RuntimeError') and ('cleanup_epoch', 'raised', 'ValueError') in marks(rec) and rec.error=='ValueError: b'
    learn,_ = quiet('bare')
    learn.loss_fn = lambda p,y: F.cross_entropy(p[:, :0], y)
    rec = learn.record()
    assert marks(rec)[0][:2]==('cleanup_batch', 'flying') and rec.error and rec.frames[-1]['event']=='cleanup_fit'
    learn,kw = quiet('cancels_batches')
    assert marks(learn.record(**kw))==[('after_loss', 'raised', 'CancelBatchException'), ('cleanup_batch', 'caught', 'CancelBatchException')]
    learn,_ = quiet('bare')
    def loss_fn(p, y): raise CancelBatchException
    learn.loss_fn = loss_fn
    assert marks(learn.record(1, valid=False))==[('cleanup_batch', 'caught', 'CancelBatchException')], 'by a step, and not by a listener'
    class LastS(Subscriber):
        def cleanup_fit(self, learn): raise KeyError('late')
    assert marks(quiet('bare')[0].record(1, valid=False, subs=[LastS()]))==[('cleanup_fit', 'raised', 'KeyError')]
    try: 1/0
    except ZeroDivisionError: assert not marks(quiet('bare')[0].record()), 'what is being handled outside is none of the fit'

def test_events_of_listeners_and_of_parts_that_are_called():
    class PredsS(Subscriber):
        def after_epoch(self, learn): learn.get_preds()
    learn,_ = quiet('usual')
    learn.subs = [*learn.subs, PredsS()]
    assert len(learn.record().frames)==37
    class Own(Learner):
        @PublishEvents('twice')
        def predict(self): super().predict()
        def one_batch(self):
            super().one_batch()
            return (lambda: None)()
    learn = Own(learn.model, learn.dls, learn.loss_fn, learn.optim_class, learn.lr, learn.subs)
    learn.quiet = True
    rec = learn.record()
    assert 'called:' in rec.code and {'after_loss', 'after_batch'} <= {e for e, in events(rec)} and all('learn.one_batch()' in rec.code.splitlines()[f['line']-1] for f in rec.frames if 'batch' in f)

def test_its_size_is_bounded(learn):
    rec = learn.record(100, 3, limit=20)
    assert len(rec.frames)==20 and rec.dropped > 200 and f'{rec.dropped} more' in repr(rec) and f'{rec.dropped} more' in rec._repr_html_()
    assert len(json.dumps(rec.frames)) < 20*1500
    rows = [{f'column {i}': torch.tensor(i) for i in range(40)}]*2
    class Sum(torch.nn.Linear):
        def forward(self, batch): return super().forward(torch.stack([*batch.values()]).float()[:1])
    wide = Learner(Sum(1, 1), SimpleNamespace(train=rows, valid=None), lambda p,y: p.sum(), torch.optim.SGD, .1)
    wide.predict,wide.targets = lambda: setattr(wide, 'preds', wide.model(wide.batch)),lambda: None
    frames = wide.record(1, valid=False).frames
    assert len([k for f in frames for k in f['set'] if k.startswith('column')]) ==6

@pytest.mark.parametrize('ask,error', [
    (dict(batches=0), 'batches'), (dict(batches='2'), 'batches'), (dict(limit=0), 'limit'), (dict(cancel=('after_lunch', 0)), 'after_lunch'), (dict(cancel=('after_loss', -1)), 'number'),
    (dict(cancel='after_loss'), 'tuple'), (dict(fail=('after_loss',)), 'tuple'), (dict(fail=('after_loss', 0, ValueError)), 'tuple'), (dict(cancel=('after_loss', 0, ValueError)), 'exception'),
    (dict(cancel=('after_fit', 1)), 'came 1 times'), (dict(epochs=-1), 'epochs'), (dict(lr='x'), 'lr'), (dict(detail='more'), 'detail'), (dict(subs=3), 'subs')])
def test_bad_input(learn, ask, error):
    start = left(learn)
    with pytest.raises((TypeError, ValueError), match=error): learn.record(**ask)
    assert not differ(start, left(learn))

# ---- what shows it
class Text(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags,self.rows,self.scripts = [],[],0
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag=='tr': self.rows.append([])
        if tag in ('td', 'th'): self.rows[-1].append('')
    def handle_data(self, data):
        if self.rows and self.rows[-1]: self.rows[-1][-1] += data.strip('\n')

def test_the_same_bytes_each_time(learn, rec, cancelled):
    again = seeded(quiet('usual')[0])
    assert again._repr_html_()==rec._repr_html_() and again.svg()==rec.svg() and repr(again)==repr(rec)
    two = replay(normal=rec, cancelled=cancelled)
    keys = [re.search('data-key="(\\w+)"', o._repr_html_())[1] for o in (rec, cancelled, two)]
    assert len({*keys})==3 and two._repr_html_()==replay(dict(normal=rec), cancelled=cancelled)._repr_html_()

def test_the_page_stands_alone(rec, cancelled, tmp_path):
    rec.save(tmp_path/'fit.html', title='<Fit>')
    page = (tmp_path/'fit.html').read_text(encoding='utf-8')
    tags = Text(page).tags
    assert not [a for t,a in tags if t in ('link', 'img') or 'src' in a or 'href' in a] and not re.search(r'https?://|@import|url\(', page) and '<h1>&lt;Fit&gt;</h1>' in page
    assert len(replay(a=rec, b=cancelled)._repr_html_()) < len(rec._repr_html_())+25_000, 'the second holds what differs from the first'

def test_its_size(rec):
    template = Path(nntrain.__file__).with_name('player.html').read_bytes()
    assert len(template) <= 25_000 and len(rec._repr_html_().encode()) < len(template) + 900*len(rec.frames)

def test_table_without_script(rec):
    before,script = rec._repr_html_().split('<script>')
    rows = Text(before).rows
    assert [t for t,_ in Text(before).tags if t in ('th', 'td')]==['th']*4 + ['td']*4*len(rec.frames)
    assert rows[0]==['event', 'where', 'who listens', 'what happens'] and [r[0].strip('\u00a0') for r in rows[1:]]==[e for e, in events(rec)]
    assert 'loss: ' in rows[5][3] and rows[5][1]=='epoch 0, training, batch 0'

def test_text_is_escaped(learn):
    class EvilS(Subscriber):
        def before_epoch(self, learn): learn.batch = {'<b>&': '</script><script>alert(1)</script><!--'}
        def before_batch(self, learn): raise ValueError('<i>')
    bare,_ = quiet('bare')
    rec = bare.record(subs=[EvilS()])
    rec.frames[1]['listeners'] = ['<img src=x>']
    page = rec._repr_html_()
    assert page.count('</script')==1 and '<!--' not in page and '<img' not in page and '<b>' not in page and 'alert(1)' in page
    assert '&lt;img src=x&gt;' in page and "<" not in page.split('const D = ')[1].split('\n')[0]
    drawn = quiet('dicts')[0].record()
    drawn.frames[4]['set']['<b>'] = dict(text='</text>', more='')
    assert '&lt;b&gt;' in ET.tostring(ET.fromstring(drawn.svg()), 'unicode')

def test_the_picture(learn, rec):
    svg = ET.fromstring(rec.svg())
    texts = [t.text for t in svg.iter('{http://www.w3.org/2000/svg}text')]
    assert {'for learn.batch in batches:', 'learn.loss.backward()', 'after_loss', 'batch[0]'} <= {*texts} and len(rec.svg()) < 20_000
    groups = [g for g in svg if g.tag.endswith('}g')]
    assert 'still' in groups[0].get('class') and any(t.text=='after_loss' for t in groups[0]), 'it stands still at the loss'
    assert 'prefers-reduced-motion' in rec.svg() and rec.svg()._repr_svg_()==rec.svg()
    with pytest.raises(ValueError, match='no training batch'): learn.record(cancel=('before_epoch', 0)).svg()

def test_replay(rec, cancelled, learn):
    data = replay({'a b': rec}, an_error=cancelled, start='after_loss', lead='Raised:').data()
    assert [r['label'] for r in data['runs']]==['a b', 'an error'] and data['start']==4 and data['lead']=='Raised:' and data['code'][0].startswith(('with', 'if'))
    at = next(i for i,f in enumerate(cancelled.frames) if 'raised' in f)
    assert data['runs'][1]['same']==at and len(data['runs'][1]['frames'])==len(cancelled.frames)-at
    for ask,error in (((), 'needs a recording'), (((('a', rec), ('b', learn.record(detail='short'))),), 'different loops')):
        with pytest.raises(ValueError, match=error): replay(*ask)
    with pytest.raises(ValueError, match='start'): replay(a=rec, start='after_lunch')

def test_images_of_flat_batches():
    class Dl(list): dataset = SimpleNamespace(images={'image'}, cols=dict(image=torch.zeros(9, 1, 4, 6), label=torch.zeros(9)))
    dl = Dl([(torch.rand(4, 24), torch.rand(4, 8))]*2)
    learn = Learner(torch.nn.Linear(24, 8), SimpleNamespace(train=dl, valid=Dl([(torch.rand(4, 24), torch.rand(4, 8))])), F.mse_loss, torch.optim.SGD, .1)
    rec = learn.record()
    assert rec.frames[2]['set']['batch[0]']['images'].startswith('data:image/png;base64,iVBOR') and 'images' not in rec.frames[2]['set']['batch[1]']
    assert len(rec.data()['images'])==3 and rec.svg().count('<image')==1, 'one for training, one for validation'

def test_plain_loaders():
    from torch.utils.data import DataLoader, TensorDataset
    ds = TensorDataset(torch.rand(20, 3), torch.rand(20, 1))
    learn = Learner(torch.nn.Linear(3, 1), DataLoaders(DataLoader(ds, 8, shuffle=True), None), F.mse_loss, torch.optim.SGD, .1)
    start = left(learn)
    assert [f.get('batch') for f in learn.record(9, valid=False).frames if f['event']=='before_batch']==[0, 1, 2] and not differ(start, left(learn))

# ---- the terminal
def test_in_a_pipe_it_prints(rec, capsys):
    rec.play()
    out = capsys.readouterr().out
    assert out.strip()==repr(rec) and '\x1b' not in out and len(out.splitlines())==38

def test_screen(rec, cancelled):
    at = next(i for i,f in enumerate(cancelled.frames) if 'raised' in f)
    text = cancelled.screen(at)
    assert 'CancelBatchException is raised here.' in text and re.search(r'^# after_loss$', text, re.M) and re.search(r'^\* loss', text, re.M) and re.search(r'^  preds', text, re.M)
    assert 'learn.loss = learn.loss_fn(learn.preds, learn._targets)' in text and 'backward' not in text and max(map(len, text.splitlines())) <= 80

@pytest.mark.skipif(os.name!='posix', reason='needs a terminal of a Unix')
def test_keys(rec, monkeypatch, capsys):
    "In a terminal: a pair of them, into which the keys are written"
    import pty, termios
    main,end = pty.openpty()
    stdin = os.fdopen(end, 'r')
    monkeypatch.setattr(sys, 'stdin', stdin)
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    mode,pressed = termios.tcgetattr(end),iter([b'\x1b[C', b'b', b'e', b'\x1b[D', b'\x1b[D', b' ', b'e', b'e', b'x', b'q'])
    monkeypatch.setattr(os, 'read', lambda fd, n: next(pressed))
    rec.play()
    seen = [int(o) for o in re.findall(r'(\d+)/37  ', capsys.readouterr().out)]
    assert seen==[1, 2, 3, 12, 11, 10, 11, 20, 28, 28], seen
    assert termios.tcgetattr(end)==mode
    stdin.close(); os.close(main)

# ---- it costs nothing when it isn't used
def test_it_is_imported_when_it_is_used():
    users = {p.stem for p in Path(nntrain.__file__).parent.rglob('*.py') if re.search(r'^from \.+(player|explain|replay) import', p.read_text(encoding='utf-8'), re.M)}
    assert users=={'player'}
