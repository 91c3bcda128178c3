"""What does each subscriber cost? Time per training step with it, as a ratio to the same fit without it.

Both sides run in one process, in turn (A B A B ...), on one torch thread; a ratio is taken for each pair, and the
median of the ratios is printed, with the middle half of them. Small batches and a small model on purpose: the step
is so short that any overhead shows. Two rows do more work by design and say so: 16 bits have no fast path on most
CPUs, and averaged weights are also swapped in for validation.  Usage: python bench/subscribers.py [pairs]"""
import io, os, statistics, sys, time, warnings
from contextlib import redirect_stdout
from types import SimpleNamespace

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch, torch.nn.functional as F  # noqa: E402
from torcheval.metrics import MulticlassAccuracy  # noqa: E402
from torchvision.transforms import v2  # noqa: E402
from nntrain.acceleration import AugmentS, GradAccumS, GradClipS, MixedPrecisionS, NormalizationS  # noqa: E402
from nntrain.average import EMAS  # noqa: E402
from nntrain.core import set_seed  # noqa: E402
from nntrain.inspect import ActivationStatsS, TimerS  # noqa: E402
from nntrain.learner import DeviceS, Learner, MetricsS, ProgressS  # noqa: E402
from nntrain.models import mlp  # noqa: E402
from nntrain.schedule import EarlyStoppingS, SchedulerS, one_cycle  # noqa: E402

torch.set_num_threads(1)
N_BATCHES, BS = 200, 64

def data():
    set_seed(0)
    return SimpleNamespace(train=[(torch.rand(BS, 1, 28, 28), torch.randint(0, 10, (BS,))) for _ in range(N_BATCHES)], valid=None)

rows = {
    'MetricsS, loss only': lambda m: MetricsS(),
    'MetricsS, accuracy': lambda m: MetricsS(accuracy=MulticlassAccuracy()),
    'DeviceS': lambda m: DeviceS('cpu'),
    'ProgressS, a log': lambda m: ProgressS(display='log'),
    'ProgressS, a terminal': lambda m: ProgressS(display='terminal'),
    'SchedulerS, one cycle': lambda m: SchedulerS(one_cycle),
    'EarlyStoppingS': lambda m: EarlyStoppingS('train_loss'),
    'GradClipS, measure': lambda m: GradClipS(),
    'GradClipS, max_norm': lambda m: GradClipS(1.),
    'GradAccumS, 4 batches': lambda m: GradAccumS(4),
    'EMAS': lambda m: EMAS(),
    'NormalizationS': lambda m: NormalizationS(.3, .4),
    'AugmentS, flip': lambda m: AugmentS(v2.RandomHorizontalFlip()),
    'AugmentS, flip, draws=1': lambda m: AugmentS(v2.RandomHorizontalFlip(), draws=1),
    'MixedPrecisionS, bfloat16': lambda m: MixedPrecisionS(torch.bfloat16),
    'ActivationStatsS, 4 layers': lambda m: ActivationStatsS(m),
    'ActivationStatsS, every=10': lambda m: ActivationStatsS(m, every=10),
    'TimerS': lambda m: TimerS(),
}

def timed(dls, sub):
    set_seed(0)
    model = mlp(784)
    learn = Learner(model, dls, F.cross_entropy, torch.optim.SGD, 0.01, [sub(model)] if sub else [])
    cpu, wall = time.process_time(), time.perf_counter()
    with redirect_stdout(io.StringIO()): learn.fit(1, valid=False)
    return time.process_time()-cpu, time.perf_counter()-wall

def main():
    pairs, dls = int(sys.argv[1]) if len(sys.argv) > 1 else 20, data()
    print(f'torch {torch.__version__}, {pairs} pairs, one thread, batches of {BS}, MLP 784-50-10')
    print(f"{'with / without':28} {'ratio of CPU time':>22} {'ratio of wall time':>22} {'us/step added':>14}")
    for name, sub in rows.items():
        for s in (None, sub): timed(dls, s)
        runs = [(timed(dls, None), timed(dls, sub)) for _ in range(pairs)]
        res = []
        for i in (0, 1):
            q = statistics.quantiles([y[i]/x[i] for x, y in runs], n=4)
            res.append(f'{q[1]:.3f} ({q[0]:.3f}-{q[2]:.3f})')
        added = statistics.median(y[0]-x[0] for x, y in runs)/N_BATCHES*1e6
        print(f'{name:28} {res[0]:>22} {res[1]:>22} {added:>14.0f}', flush=True)

if __name__ == '__main__': main()
