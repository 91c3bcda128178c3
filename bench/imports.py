"""What does importing nntrain cost? Whole processes, in turn: `import torch` and `import nntrain.learner`, as a ratio.

Usage: python bench/imports.py [pairs]"""
import os, resource, statistics, subprocess, sys, time

def run(code):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    wall, after = time.perf_counter()-start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime+after.ru_stime-before.ru_utime-before.ru_stime, wall

def main():
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    a, b = 'import torch', 'import nntrain.learner'
    for code in (a, b): run(code)
    runs = [(run(a), run(b)) for _ in range(pairs)]
    cpu, wall = (statistics.median(y[i]/x[i] for x, y in runs) for i in (0, 1))
    print(f'`{b}` / `{a}`: {cpu:.3f} in CPU time, {wall:.3f} in wall time ({statistics.median(x[1] for x, _ in runs):.1f} s), {pairs} pairs')

if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    main()
