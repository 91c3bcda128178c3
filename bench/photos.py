"""How fast are photos of any size? Against torchvision's ImageFolder and v2 transforms in torch's DataLoader, side by side in one run.

The photos are made of the two that scikit-learn ships: other parts and sizes (350 to 640 pixels), as JPEG files. Usage: python bench/photos.py [photos] [pairs]"""
import os, resource, statistics, subprocess, sys, tempfile, time
from functools import partial
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np, torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import v2  # noqa: E402
from nntrain.dataloaders import DataLoaders  # noqa: E402

BS, SIZE = 64, 160

def make(path, n):
    "`n` photos of two classes in folders: parts of the photos that scikit-learn ships, at other sizes"
    from sklearn.datasets import load_sample_images
    rng = np.random.default_rng(0)
    for c, im in enumerate(map(Image.fromarray, load_sample_images().images)):
        (path/f'class{c}').mkdir(parents=True)
        for i in range(n//2):
            w, h = rng.integers(350, 641, 2)
            k = max(w/im.width, h/im.height)*rng.uniform(1, 1.5)
            big = im.resize((round(im.width*k)+1, round(im.height*k)+1), Image.BICUBIC)
            x, y = rng.integers(0, big.width-w+1), rng.integers(0, big.height-h+1)
            big.crop((x, y, x+w, y+h)).save(path/f'class{c}'/f'{i:05}.jpg', quality=90)

def theirs(path, workers):
    tfm = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return DataLoader(ImageFolder(path, tfm), BS, shuffle=True, num_workers=workers)

def ours(path, workers, **kw): return DataLoaders.from_folder(path, BS, size=SIZE, valid=.01, seed=0, num_workers=workers, **kw).train

def cpu_time(): return sum(o.ru_utime+o.ru_stime for o in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

def clock(make, *args):
    "Seconds of wall time and of CPU time per photo to make a loader and read it once, those of workers included; and the loader"
    t, c = time.perf_counter(), cpu_time()
    dl = make(*args)
    n = sum(len(y) for _, y in dl)
    return ((time.perf_counter()-t)/n, (cpu_time()-c)/n), dl

def row(what, runs, base, target):
    "Median of the ratios of pairs"
    wall, cpu = (statistics.median(r[i]/b[i] for r, b in zip(runs, base)) for i in (0, 1))
    ours, their = (statistics.median(o[1] for o in rs)*1000 for rs in (runs, base))
    print(f'{what:<46} {wall:6.3f} {cpu:6.3f}   {target:>6}   {ours:6.2f} ms {their:6.2f} ms', flush=True)

def main(n=1000, pairs=3):
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp)/'photos'
        make(path, n)
        print(f'{n} photos of {sum(f.stat().st_size for f in path.rglob("*.jpg"))/n/1024:.0f} kB, batches of {BS} at {SIZE} pixels; nntrain / ImageFolder in wall and CPU time, aim; CPU time per photo of both')
        for workers in (0, 2):
            base, first, later, streamed = [], [], [], []
            for _ in range(pairs):
                base.append(clock(theirs, path, workers)[0])
                time_, dl = clock(ours, path, workers)
                first.append(time_)
                later.append(clock(lambda dl: dl, dl)[0])
                streamed.append(clock(partial(ours, cache=False), path, workers)[0])
            name = f'{workers} workers' if workers else 'one thread'
            row(f'{name}: first pass, decoding included', first, base, '0.85')
            row(f'{name}: later passes', later, base, '0.22')
            row(f'{name}: cache=False', streamed, base, '1')
        code = f"""import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import photos
from pathlib import Path
def top(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])/1024
if sys.argv[1]=='ours':
    dl = photos.ours({str(path)!r}, 0)
    list(map(len, dl))
    print(sum(p['pixels'].numel() for p in dl.dataset.photos._parts)/2**20, top())
else: print(0, top())"""
        run = lambda what: [float(o) for o in subprocess.run([sys.executable, '-c', code, what], capture_output=True, text=True, check=True).stdout.split()]  # noqa: E731
        (_, none), (kept, peak) = run('none'), run('ours')
        print(f'memory: {kept:.0f} MB kept; the peak is {peak-none:.0f} MB above the same process without data, {peak-none-kept:.0f} MB more than what is kept (aim: 150)')

if __name__=='__main__': main(*map(int, sys.argv[1:]))
