"""What the video shows of a model that trains itself (rows T of the feature table), where the notebook doesn't show it already; and the rows C of the digit classifier."""
import io, math, os, subprocess, sys, textwrap
from functools import partial
from pathlib import Path

import numpy as np, pytest, torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders, hf_ds_collate_fn
from nntrain.events import Subscriber
from nntrain.learner import Learner
from nntrain.saving.files import BadCheckpoint
from nntrain.trainable import COUNTERS, Callback, EarlyStopping, Model

class Points(Dataset):
    def __init__(self, n=50, seed=0): g = torch.Generator().manual_seed(seed); self.x = torch.randn(n, 4, generator=g); self.y = (self.x.sum(1) > 0).long()
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return dict(features=self.x[i], targets=self.y[i])

class Net(Model):
    def __init__(self): super().__init__(); self.lin = nn.Linear(4, 2)
    def loss(self, outputs, targets): return None if targets is None else F.cross_entropy(outputs, targets)
    def forward(self, features, targets=None): out = self.lin(features); return out, self.loss(out, targets), {}
    def fetch_optimizer(self): return torch.optim.SGD(self.parameters(), 0.1)

def net(cls=Net, seed=0): set_seed(seed); return cls()
kw = dict(device='cpu', progress=False)

def test_both_spellings():
    "T3: the video's arguments and those of the package of its time; T5: a device as text or as an object"
    a, b = net(), net()
    a.fit(Points(), Points(20, 1), batch_size=8, epochs=2, device='cpu', callbacks=[], fp16=False, progress=False, seed=1)
    b.fit(Points(), valid_dataset=Points(20, 1), train_bs=8, valid_bs=5, n_jobs=0, epochs=2, device=torch.device('cpu'), accumulation_steps=1,
          train_sampler=None, valid_sampler=None, train_collate_fn=None, valid_collate_fn=None, train_shuffle=True, valid_shuffle=False, progress=False, seed=1)
    assert torch.equal(a.lin.weight, b.lin.weight)
    assert (a.current_valid_step, b.current_valid_step) == (2*3, 2*4)
    assert a.history[2]['loss'] < a.history[0]['loss']

def test_loaders_made_inside():
    "T4: the training data are shuffled, those of validation aren't; neither loader stays on the model"
    m = net()
    m.fit(Points(), Points(20, 1), 8, 1, **kw)
    assert [getattr(m.learn.dls, o).plan.shuffle for o in ('train', 'valid')] == [True, False]
    assert [getattr(m.learn.dls, o).batch_size for o in ('train', 'valid')] == [8, 8]
    assert m.train_loader is None and m.valid_loader is None
    m.fit(Points(), None, 8, 1, train_shuffle=False, **kw)
    assert not m.learn.dls.train.plan.shuffle

def test_losses_are_weighted():
    "T6: the mean loss of a pass is that of its samples, though the last batch is shorter"
    m = net()
    seen = []
    class Keep(Net):
        def train_one_epoch(self, data_loader): res = super().train_one_epoch(data_loader); seen.append(res); return res
        def fetch_optimizer(self): return torch.optim.SGD(self.parameters(), 0.)
    m = net(Keep)
    data = Points(21)
    m.fit(data, None, 8, 1, **kw)
    want = F.cross_entropy(m(data.x)[0], data.y).item()
    assert seen == [pytest.approx(want, abs=1e-6)] and m.metrics['train']['loss'] == seen[0]

def test_order_of_a_step():
    "T7: forward, backward, step, zero_grad, scheduler"
    log = []
    class Sgd(torch.optim.SGD):
        def step(self, *args): log.append('step'); return super().step(*args)
        def zero_grad(self, *args): log.append('zero_grad'); super().zero_grad(*args)
    class Spy(Net):
        step_scheduler_after = 'batch'
        def forward(self, features, targets=None): log.append('forward'); features.requires_grad_(); features.register_hook(lambda g: log.append('backward')); return super().forward(features, targets)
        def fetch_optimizer(self): return Sgd(self.parameters(), 0.1)
        def fetch_scheduler(self):
            s = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
            old = s.step
            s.step = lambda *a: (log.append('scheduler'), old(*a))
            return s
    net(Spy).fit(Points(16), None, 8, 1, **kw)
    assert log == ['forward', 'backward', 'step', 'scheduler', 'zero_grad']*2

def test_loss_without_targets():
    "T12"
    assert net().loss(torch.zeros(2, 2), None) is None
    assert net()(torch.zeros(2, 4))[1:] == (None, {})

def test_validation_is_validation():
    "T15: evaluation mode, no gradients, own numbers; afterwards everything as before"
    seen = []
    class Bn(Net):
        def __init__(self): super().__init__(); self.bn, self.drop = nn.BatchNorm1d(4), nn.Dropout(.5); self.drop.eval()
        def forward(self, features, targets=None):
            seen.append((self.training, self.bn.training, self.drop.training, torch.is_grad_enabled()))
            return super().forward(self.drop(self.bn(features)), targets)
    m = net(Bn)
    m.fit(Points(16), Points(8, 1), 8, 1, **kw)
    assert seen == [(True, True, True, True)]*2 + [(False, False, False, False)]
    assert (m.training, m.drop.training) == (True, False)
    assert m.bn.num_batches_tracked == 2
    assert m.metrics['train'] != m.metrics['valid']
    assert all(p.grad is None for p in m.parameters())

def test_errors_touch_nothing():
    m = net()
    w = m.lin.weight.clone()
    for bad in (dict(epochs=-1), dict(batch_size=0), dict(accumulation_steps=0), dict(clip_grad_norm=-1.), dict(fp16=True, bf16=True), dict(subs=[Subscriber]), dict(callbacks=[Callback])):
        with pytest.raises((ValueError, TypeError)): m.fit(Points(), **{**kw, **bad})
    with pytest.raises(ValueError, match='has no rows'): m.fit(Points(0), **kw)
    assert m.learn is None and m.optimizer is None and m.history == [] and torch.equal(m.lin.weight, w)

def test_a_damaged_file_is_not_loaded(tmp_path):
    "One bit that fell over, an end that is missing: named, and the model as it was"
    m, f = net(), tmp_path/'m.pt'
    m.fit(Points(), None, 8, 1, **kw); m.save(f)
    data = f.read_bytes()
    for bad in (data[:1500] + bytes([data[1500]^1]) + data[1501:], data[:-100], b''):
        f.write_bytes(bad)
        new, before = net(seed=5), net(seed=5).lin.weight
        with pytest.raises(BadCheckpoint, match='m.pt'): new.load(f)
        assert torch.equal(new.lin.weight, before)
    with pytest.raises(FileNotFoundError, match='there is no file'): m.load(tmp_path/'none.pt')

def test_an_error_in_training_leaves_no_trace():
    class Oops(Callback):
        def on_train_step_end(self, model): raise RuntimeError('oops')
    m = net()
    with pytest.raises(RuntimeError, match='oops'): m.fit(Points(), callbacks=[Oops()], **kw)
    assert m.train_loader is None and m.current_train_step == 1
    m.fit(Points(), epochs=1, **kw)
    assert m.history[-1]['samples'] == 50

def test_frames():
    "From the call of `fit` to `forward`: at most 12 frames of nntrain"
    seen = []
    class Deep(Net):
        def forward(self, features, targets=None):
            f, names = sys._getframe(), []
            while f := f.f_back:
                if '/nntrain/' in f.f_code.co_filename: names.append(f.f_code.co_name)
            seen.append(names)
            return super().forward(features, targets)
    m = net(Deep)
    m.fit(Points(), Points(20, 1), epochs=1, **kw)
    assert len(seen) == 4+2 and all(o[-1] == 'fit' and len(o) <= 12 for o in seen), seen[0]

@pytest.mark.parametrize('name', [k for k in (*vars(Model), *net().__dict__) if k[0] != '_' and k not in vars(nn.Module())])
def test_names_that_are_in_use(name):
    "A layer whose name Model uses itself is refused where it is assigned, and every other one works"
    for v in (nn.Linear(2, 2), nn.Parameter(torch.ones(2))):
        with pytest.raises(AttributeError, match=f"'{name}' means something else .* 'my_{name}'"):
            setattr(net(), name, v)

def test_a_loss_as_a_module():
    "The line that everybody writes"
    class M(Model):
        def __init__(self): super().__init__(); self.lin, self.loss = nn.Linear(4, 2), nn.CrossEntropyLoss()
        def forward(self, features, targets=None): o = self.lin(features); return o, None if targets is None else self.loss(o, targets)
        def fetch_optimizer(self): return torch.optim.SGD(self.parameters(), 0.1)
    a, b = net(M), net()
    for m in (a, b): m.fit(Points(), epochs=2, seed=0, **kw)
    assert torch.equal(a.lin.weight, b.lin.weight) and list(a.state_dict()) == ['lin.weight', 'lin.bias']

def test_what_runs_beside_the_training_leaves_no_trace(tmp_path):
    "validate and lr_find: optimizer, counters, states, metrics and history of the model stay; a loaded optimizer goes on waiting"
    log = []
    class Log(Callback):
        def on_valid_epoch_end(self, model): log.append('valid')
        def on_train_step_end(self, model): log.append('step')
    class Adam(Net):
        def fetch_optimizer(self): return torch.optim.Adam(self.parameters(), 0.1)
    def state(m): return (m.optimizer, m.train_state, m.model_state, [getattr(m, k) for k in COUNTERS], str(m.metrics), str(m.history), len(log))
    m = net(Adam)
    m.fit(Points(), Points(20, 1), epochs=1, callbacks=[Log()], **kw)
    before = state(m)
    m.learn.validate(); assert state(m) == before
    m.learn.lr_find(plot=False); assert state(m) == before
    m.save(tmp_path/'m.pt')
    new = net(Adam); new.fit(Points(), Points(20, 1), epochs=0, **kw)
    new.load(tmp_path/'m.pt')
    new.learn.validate(); new.learn.lr_find(plot=False)
    for o in (m, new): o.fit(Points(), epochs=1, seed=1, keep_opt=True, **kw)
    assert torch.equal(m.lin.weight, new.lin.weight)

def test_number_of_workers():
    for f in (lambda: net().fit(Points(), n_jobs=-1, **kw), lambda: net().predict(Points(), n_jobs=-1)):
        with pytest.raises(ValueError, match='n_jobs must be a whole number'): f()

def test_steps_that_use_no_model_learner():
    "Gradients, weights and means are those of the learner's step when a step of one's own does the same; `super()` may be called from a pass, too"
    class Mine(Net):
        def train_one_step(self, data):
            self.optimizer.zero_grad()
            out, loss, metrics = self.model_fn(data)
            loss.backward(); self.optimizer.step()
            return loss, dict(metrics, double=2*loss)
        def train_one_epoch(self, data_loader): super().train_one_epoch(data_loader)
    a, b = net(Mine), net()
    for m in (a, b): m.fit(Points(), Points(20, 1), epochs=2, seed=0, **kw)
    assert torch.equal(a.lin.weight, b.lin.weight) and len(a.history) == 4
    assert [r['loss'] for r in a.history] == pytest.approx([r['loss'] for r in b.history])
    assert a.metrics['train']['double'] == pytest.approx(2*a.metrics['train']['loss'])

def test_progress_in_a_pipe(capsys):
    "T24: the metrics are shown at every epoch"
    class Acc(Net):
        def monitor_metrics(self, outputs, targets): return dict(accuracy=(outputs.argmax(1) == targets).float().mean())
        def forward(self, features, targets=None): return super().forward(features, targets)[:2]
    net(Acc).fit(Points(), Points(20, 1), epochs=2, device='cpu')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['epoch', 'mode', 'loss', 'accuracy'] and len(lines) == 5
    assert lines[-1].split()[:2] == ['1', 'eval']

def test_other_metrics_and_keep_opt(capsys):
    "A metric of torcheval's kind sees predictions and targets of dict batches; an optimizer can be kept"
    from nntrain.subscribers import MetricsS
    class Hits:
        def reset(self): self.n = 0
        def update(self, preds, y): self.n += (preds.argmax(1) == y).sum()
        def compute(self): return self.n
    m = net()
    m.fit(Points(), Points(20, 1), epochs=1, subs=[MetricsS(hits=Hits())], device='cpu')
    assert m.history[-1]['hits'] == (m(Points(20, 1).x)[0].argmax(1) == Points(20, 1).y).sum()
    opt = m.optimizer
    m.fit(Points(), epochs=1, keep_opt=True, **kw); assert m.optimizer is opt
    m.fit(Points(), epochs=1, **kw); assert m.optimizer is not opt
    assert (m.current_epoch, m.current_train_step) == (3, 12)

def test_early_stopping_on_nan():
    "T19: NaN is never the best"
    class Nan(Net):
        def validate_one_step(self, data): loss, metrics = super().validate_one_step(data); return loss, metrics
        def monitor_metrics(self, outputs, targets): return dict(x=math.nan)
        def forward(self, features, targets=None): return super().forward(features, targets)[:2]
    m, stop = net(Nan), EarlyStopping('valid_x', patience=2, mode='min')
    m.fit(Points(), Points(20, 1), epochs=9, callbacks=[stop], **kw)
    assert (m.current_epoch, stop.best) == (2, None)

# the digit classifier

class ImageClassifier(nn.Module):
    "C2, as in the video"
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 32, (3, 3)), nn.ReLU(), nn.Conv2d(32, 64, (3, 3)), nn.ReLU(), nn.Conv2d(64, 64, (3, 3)), nn.ReLU(),
                                   nn.Flatten(), nn.Linear(64*(28-6)*(28-6), 10))
    def forward(self, x): return self.model(x)

class Digits28(Dataset):
    "C1: a data set as torchvision has them: `(picture, label)`, `transform`, `classes`"
    classes = [f'{i} - digit' for i in range(10)]
    def __init__(self, transform): from sklearn.datasets import load_digits; d = load_digits(); self.images, self.targets, self.transform = d.images[:96], d.target[:96], transform
    def __len__(self): return len(self.targets)
    def __getitem__(self, i):
        from PIL import Image
        im = Image.fromarray((self.images[i]*255/16).astype(np.uint8)).resize((28, 28))
        return self.transform(im), int(self.targets[i])

def to_tensor(im): return torch.from_numpy(np.array(im))[None].float()/255

def test_the_classifier_of_the_video(tmp_path):
    "C1 to C3, C6, C7: the data plug in, the network has its size, a file that torch alone wrote loads and predicts the same"
    set_seed(0)
    theirs = ImageClassifier()
    assert sum(p.numel() for p in theirs.parameters()) == 365_514
    torch.save(theirs.state_dict(), tmp_path/'model_state.pt')
    ds = Digits28(to_tensor)
    learn = Learner(ImageClassifier(), DataLoaders.from_datasets(ds, ds, 32), F.cross_entropy, torch.optim.Adam, 1e-3)
    learn.model.load_state_dict(torch.load(tmp_path/'model_state.pt'))
    x = torch.stack([ds[i][0] for i in range(4)])
    with torch.no_grad(): want = theirs.eval()(x).softmax(1)
    from PIL import Image
    for i in range(4):
        Image.fromarray((ds.images[i]*255/16).astype(np.uint8)).resize((28, 28)).convert('RGB').save(tmp_path/'img.png')
        res = learn.predict_item(tmp_path/'img.png')
        assert torch.allclose(res.probs, want[i], atol=1e-5) and res.index == want[i].argmax() and res.label == f'{res.index} - digit'
    assert learn.model.training # as it was

@pytest.mark.slow
def test_script_with_workers(tmp_path):
    "C4: the program as a script, with workers that are started anew (`spawn`)"
    (tmp_path/'torchnn.py').write_text(textwrap.dedent('''
        import torch, torch.nn.functional as F
        from nntrain.trainable import Model
        class Points(torch.utils.data.Dataset):
            def __len__(self): return 64
            def __getitem__(self, i): return dict(x=torch.tensor([float(i%2)]), targets=i%2)
        class Net(Model):
            def __init__(self): super().__init__(); self.lin = torch.nn.Linear(1, 2)
            def forward(self, x, targets=None): out = self.lin(x); return out, None if targets is None else F.cross_entropy(out, targets)
            def fetch_optimizer(self): return torch.optim.SGD(self.parameters(), 1.)
        if __name__ == "__main__":
            torch.multiprocessing.set_start_method('spawn')
            net = Net()
            net.fit(Points(), batch_size=32, epochs=2, n_jobs=1, device='cpu')
            print(sum(len(o) for o in net.predict(Points(), n_jobs=1)))
    '''))
    root = Path(__file__).resolve().parent.parent
    res = subprocess.run([sys.executable, tmp_path/'torchnn.py'], capture_output=True, text=True, timeout=240, env=os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1'))
    assert res.returncode == 0, res.stderr
    lines = res.stdout.splitlines()
    assert lines[0].split() == ['epoch', 'mode', 'loss'] and lines[-1] == '64'

def test_one_epoch_on_few_pictures():
    "C4: a small CNN learns scikit-learn's digits to over 95 % within few epochs"
    from nntrain.core import get_dataset
    set_seed(0)
    dls = DataLoaders.from_hf_dd(get_dataset('digits'), 32, partial(hf_ds_collate_fn, flatten=False), seed=0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    learn = Learner(model, dls, F.cross_entropy, torch.optim.Adam, 1e-3)
    learn.quiet = True
    learn.fit(6)
    preds, targs = learn.get_preds(with_targets=True)
    assert (preds.argmax(1) == targs).float().mean() > .95
    f = io.BytesIO(); torch.save(learn.model.state_dict(), f)
