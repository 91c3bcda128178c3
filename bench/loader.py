"""How fast are the data? Ratios, each measured side by side in one run, in wall time and in CPU time.

Fashion-MNIST if the folder that NNTRAIN_DATA names has it, else digits (the targets are meant for Fashion-MNIST).
torchvision and torcheval are imported before the clock starts, on both sides.  Usage: python bench/loader.py [pairs]"""
import gc, os, resource, statistics, subprocess, sys, tempfile, time, warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch, torch.nn.functional as F  # noqa: E402
from datasets import DatasetDict  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, default_collate  # noqa: E402
from torchvision.transforms.functional import to_tensor  # noqa: E402
from torcheval.metrics import MulticlassAccuracy  # noqa: E402
from nntrain.core import get_dataset, set_seed  # noqa: E402
from nntrain.data.memory import _alive, _owners  # noqa: E402
from nntrain.dataloaders import DataLoaders, decode  # noqa: E402
from nntrain.learner import MetricsS, MomentumLearner  # noqa: E402

NAME = 'fashion_mnist' if (Path(os.environ.get('NNTRAIN_DATA', ''))/'fashion_mnist').is_dir() else 'digits'
BS = 1024 if NAME=='fashion_mnist' else 128

def forget():
    "Let nothing that was decoded before be found again"
    _alive.clear(); _owners.clear(); gc.collect()

def cpu_time(): return sum(o.ru_utime+o.ru_stime for o in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

def clock(f, *args):
    "Seconds of wall time and of CPU time, those of workers included"
    t, c = time.perf_counter(), cpu_time()
    f(*args)
    return time.perf_counter()-t, cpu_time()-c

def ratios(a, b, pairs, before=lambda: None):
    "`a` and `b` in turn, each after `before`; the median of b/a: how many times faster `a` is, in wall and in CPU time"
    runs = [(before() or clock(a), before() or clock(b)) for _ in range(pairs)]
    return [statistics.median(y[i]/max(x[i], 1e-9) for x, y in runs) for i in (0, 1)], statistics.median(x[0] for x, _ in runs), statistics.median(y[0] for _, y in runs)

def row(what, res, target):
    (wall, cpu), ours, other = res
    print(f'{what:<68} {wall:8.2f} {cpu:8.2f}   {target:>8}   {ours:9.4f} s {other:9.4f} s', flush=True)

def original(data):
    "What the original library did: one picture at a time"
    return default_collate([[to_tensor(v).flatten() if hasattr(v, 'getbands') else torch.tensor(v) for v in o.values()] for o in data])

class Original:
    def __init__(self, dd):
        self.train, self.valid = DataLoader(dd['train'], BS, shuffle=True, collate_fn=original), DataLoader(dd['test'], BS*2, collate_fn=original)

def columns(dd): return [(c['image'].flatten(1), c['label']) for c in (decode(dd[k]) for k in ('train', 'test'))]

class ByHand:
    "The loop a person would write for tensors of bytes"
    def __init__(self, x, y, bs, shuffle): self.x, self.y, self.bs, self.shuffle = x, y, bs, shuffle
    def __iter__(self):
        order = torch.randperm(len(self.x)) if self.shuffle else torch.arange(len(self.x))
        for i in order.split(self.bs): yield self.x[i].float()/255, self.y[i]

def passes(dl):
    for _ in dl: pass

def get_model(n_in): set_seed(0); return nn.Sequential(nn.Linear(n_in, 50), nn.ReLU(), nn.Linear(50, 10))

def job(dls, n_in, epochs=5):
    "The post's job with the library: five epochs of the MLP with momentum, accuracy of both splits"
    learn = MomentumLearner(get_model(n_in), dls, F.cross_entropy, torch.optim.SGD, 0.01, subs=[MetricsS(accuracy=MulticlassAccuracy())])
    sys.stdout, out = open(os.devnull, 'w'), sys.stdout
    try: learn.fit(epochs)
    finally: sys.stdout.close(); sys.stdout = out
    return learn

def job_by_hand(train, valid, n_in, epochs=5, mom=0.85):
    "The same job in one function"
    model, metric, res = get_model(n_in), MulticlassAccuracy(), []
    opt = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(epochs):
        for dl, training in ((train, True), (valid, False)):
            model.train(training); metric.reset()
            total, n = torch.zeros(()), 0
            with torch.set_grad_enabled(training):
                for xb, yb in dl:
                    preds = model(xb)
                    loss = F.cross_entropy(preds, yb)
                    if training:
                        loss.backward(); opt.step()
                        with torch.no_grad():
                            for p in model.parameters(): p.grad *= mom
                    metric.update(preds.detach(), yb)
                    total += loss.detach()*len(xb); n += len(xb)
            res.append((total.item()/n, metric.compute().item()))
    return res

def cnn(n_in, batches):
    set_seed(0)
    side = int(n_in**.5)
    conv = lambda a, b: [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()]  # noqa: E731
    model = nn.Sequential(nn.Unflatten(1, (1, side, side)), *conv(1, 16), *conv(16, 32), *conv(32, 64), nn.Flatten(), nn.LazyLinear(10))
    model(batches[0][0])
    return model

def steps(model, batches):
    opt = torch.optim.SGD(model.parameters(), 0.01)
    for xb, yb in batches:
        F.cross_entropy(model(xb), yb).backward()
        opt.step(); opt.zero_grad()

peak_code = '''
import gc, sys, torchvision, torch, datasets.features.image, numpy, PIL.PngImagePlugin
from nntrain.core import get_dataset
from nntrain.dataloaders import DataLoaders
rss = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])/1024
dd = get_dataset(sys.argv[1])
if sys.argv[2]=='data':
    dls = DataLoaders.from_hf_dd(dd, int(sys.argv[3]))
    for dl in (dls.train, dls.valid):
        for b in dl: pass
print(rss())
'''

def peak_memory():
    run = lambda what: float(subprocess.run([sys.executable, '-c', peak_code, NAME, what, str(BS)], capture_output=True, text=True, check=True).stdout.split()[-1])  # noqa: E731
    return statistics.median(run('data') for _ in range(3))-statistics.median(run('none') for _ in range(3))

def main():
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    dd = get_dataset(NAME)
    (x, y), (vx, vy) = columns(dd)
    n_in = x.shape[1]
    print(f"{NAME}, batches of {BS}, {pairs} pairs; times faster, medians\n{'':<68} {'wall':>8} {'CPU':>8}   {'target':>8}   {'ours':>11} {'other':>11}")
    dls, hand = DataLoaders.from_hf_dd(dd, BS, seed=0), ByHand(x, y, BS, True)
    passes(dls.train); passes(hand)
    row('a later pass / indexing a tensor of bytes by hand', ratios(lambda: passes(dls.train), lambda: passes(hand), pairs), '>= 0.9')
    few = max(1, pairs//7)
    def first(): passes(DataLoaders.from_hf_dd(DatasetDict(train=dd['train']), BS).train)
    row('the first pass, decoding included / the original', ratios(first, lambda: passes(Original(dd).train), few, forget), '>= 4')
    row('a later pass / the original', ratios(lambda: passes(dls.train), lambda: passes(Original(dd).train), few), '>= 100')
    streamed = DataLoaders.from_hf_dd(dd, BS, cache=False)
    row('a streamed pass / the original', ratios(lambda: passes(streamed.train), lambda: passes(Original(dd).train), few), '')
    with tempfile.TemporaryDirectory() as tmp:
        DataLoaders.from_hf_dd(dd, BS, cache_dir=tmp)
        def fresh(): job(DataLoaders.from_hf_dd(dd, BS, seed=0), n_in)
        def disk(): job(DataLoaders.from_hf_dd(dd, BS, seed=0, cache_dir=tmp), n_in)
        def slow(): job(Original(dd), n_in)
        job(dls, n_in)
        row("the post's job, first use / with the original's collation", ratios(fresh, slow, max(1, pairs//10), forget), '>= 12')
        row("the post's job, decoded on disk / with the original's collation", ratios(disk, slow, max(1, pairs//10), forget), '>= 30')
    def by_hand(): return job_by_hand(ByHand(x, y, BS, True), ByHand(vx, vy, BS*2, False), n_in)
    row("the post's job, decoded / written by hand on the same tensors", ratios(lambda: job(dls, n_in), by_hand, pairs), '>= 0.91')
    batches = [b for b, _ in zip(dls.train, range(8))]
    plain, last = cnn(n_in, batches), cnn(n_in, batches).to(memory_format=torch.channels_last)
    for m in (plain, last): steps(m, batches)
    row('a small CNN: model.to(channels_last) / as it is, same batches', ratios(lambda: steps(last, batches), lambda: steps(plain, batches), pairs), '')
    if Path('/proc/self/status').exists():
        mb = sum(t.numel()*t.element_size() for t in (x, y, vx, vy))/2**20
        print(f'peak memory above the same process without data: {peak_memory():.0f} MB, of which {mb:.0f} MB are the decoded data (target: at most {mb+300:.0f} MB)')

if __name__ == '__main__': main()
