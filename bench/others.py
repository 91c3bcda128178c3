"""What a step costs in other libraries: CPU time of a pass / that of the bare loop, in one process, in turn.

The job is that of loop.py: an MLP 784-50-10, batches of 64 that are in memory, SGD, no metrics, no progress bar, no
files. What isn't installed is left out: pip install lightning transformers accelerate keras fastai
Usage: python bench/others.py [rounds]"""
import io, os, statistics, sys, tempfile, time, warnings
from contextlib import redirect_stdout
os.environ |= dict(OMP_NUM_THREADS='1', KERAS_BACKEND='torch', CUDA_VISIBLE_DEVICES='', TOKENIZERS_PARALLELISM='false')
warnings.filterwarnings('ignore')
import logging  # noqa: E402
from types import SimpleNamespace  # noqa: E402
import torch, torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from nntrain.learner import Learner  # noqa: E402

torch.set_num_threads(1)
n, folder = 500, tempfile.mkdtemp()
torch.manual_seed(0)
rows = torch.randn(64*n, 784), torch.randint(0, 10, (64*n,))
batches = list(zip(*(o.split(64) for o in rows)))

def new_model(): return nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))

def bare():
    model = new_model()
    opt = torch.optim.SGD(model.parameters(), 0.01)
    for xb, yb in batches:
        loss = F.cross_entropy(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()

def nntrain():
    learn = Learner(new_model(), SimpleNamespace(train=batches, valid=None), F.cross_entropy, torch.optim.SGD, 0.01)
    learn.fit(1, valid=False)

def accelerate():
    from accelerate import Accelerator
    model, acc = new_model(), Accelerator(cpu=True)
    model, opt = acc.prepare(model, torch.optim.SGD(model.parameters(), 0.01))
    for xb, yb in batches:
        loss = F.cross_entropy(model(xb), yb)
        acc.backward(loss)
        opt.step()
        opt.zero_grad()

def lightning():
    import lightning as L
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = new_model()
        def training_step(self, batch, i): return F.cross_entropy(self.model(batch[0]), batch[1])
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 0.01)
    trainer = L.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, default_root_dir=folder)
    class Loader: # a plain list would be taken for a list of loaders
        def __iter__(self): return iter(batches)
        def __len__(self): return n
    trainer.fit(Module(), Loader())

def transformers():
    from transformers import Trainer, TrainingArguments
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = new_model()
        def forward(self, x, labels): return dict(loss=F.cross_entropy(self.model(x), labels))
    class Ready(Trainer): # batches that are in memory, as for the others
        def get_train_dataloader(self): return [dict(x=x, labels=y) for x, y in batches]
    args = TrainingArguments(folder, max_steps=n, use_cpu=True, report_to=[], save_strategy='no', logging_strategy='no', disable_tqdm=True, max_grad_norm=0)
    model = Model()
    opt = torch.optim.SGD(model.parameters(), 0.01)
    Ready(model, args, train_dataset=[0]*64*n, optimizers=(opt, torch.optim.lr_scheduler.ConstantLR(opt, 1.))).train()

def keras():
    import keras
    model = keras.Sequential([keras.layers.Dense(50, activation='relu'), keras.layers.Dense(10)])
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    class Ready(keras.utils.PyDataset):
        def __len__(self): return n
        def __getitem__(self, i): return batches[i]
    model.fit(Ready(), verbose=0)

def fastai():
    import fastai.callback.progress  # noqa: F401
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper
    opt = lambda ps, **kw: OptimWrapper(ps, torch.optim.SGD)  # noqa: E731
    learn = Learner(DataLoaders(batches, batches[:1], device=torch.device('cpu')), new_model(), F.cross_entropy, opt, lr=0.01)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

def seconds(f):
    start = time.process_time()
    with redirect_stdout(io.StringIO()): f()
    return time.process_time()-start

def main(rounds=7):
    jobs = {}
    for f in (nntrain, accelerate, lightning, transformers, keras, fastai):
        try:
            f()
            jobs[f.__name__] = f
        except Exception as e: print(f'{f.__name__} is left out: {type(e).__name__}: {str(e)[:200]}')
    bare()
    pairs = {k: [] for k in jobs}
    for _ in range(rounds):
        for k, f in jobs.items():
            base = seconds(bare)
            pairs[k].append((seconds(f)/base, (seconds(f)-base)/n*1e6))
    for k, ps in pairs.items():
        print(f'{k:14}{statistics.median(p[0] for p in ps):6.2f} times the bare loop, {statistics.median(p[1] for p in ps):6.0f} µs more a step')

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
