"""Kill trainings, resume them, and compare every bit with the run that was never killed. `make torture` runs 50 kills at random steps and 50 during a save.

The children are forked from this process, so each of them starts with torch in memory. They are killed from outside (`step`), at a random moment
after a given step was written down; or by themselves (`save`), at a point in the middle of writing a checkpoint that chance would hardly hit."""
import argparse, os, random, signal, sys, tempfile, time
from pathlib import Path
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
import train_script
from nntrain.saving import files as storage

POINTS = ('write', 'written', 'replaced', 'pruning')

def kill_in_save(nth, point, rnd):
    "From now on, the `nth` save of this process ends in a SIGKILL at `point`"
    count = dict(save=0, write=0)
    die_at = rnd.randint(1, 40)
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    def patched(o, name, f): setattr(o, name, (lambda old: lambda *a, **k: f(old, *a, **k))(getattr(o, name)))
    def save(old, *a, **k): count['save'] += 1; count['write'] = 0; return old(*a, **k)
    class Dying:
        "A file in the middle of whose writing the process dies"
        def __init__(self, f): self.f,self.flush = f,f.flush
        def write(self, b):
            count['write'] += 1
            if count['save']==nth and point=='write' and count['write']==die_at: self.f.write(bytes(b)[:len(b)//2]); self.flush(); die()
            return self.f.write(b)
    def replace(old, *a):
        if count['save']==nth and point=='written': die()
        old(*a)
        if count['save']==nth and point=='replaced': die()
    def unlink(old, *a, **k):
        if count['save']==nth and point=='pruning' and a[0].suffix=='.pt': die()
        return old(*a, **k)
    patched(storage, 'write_file', save); patched(storage.torch, 'save', lambda old, state, f: old(state, Dying(f)))
    patched(os, 'replace', replace); patched(Path, 'unlink', unlink)

class Job:
    "A training in `folder` that is killed once for each of `kills`, `('step', n)` or `('save', nth, point)`, and then left in peace"
    def __init__(self, name, folder, flags=(), kills=(), seed=0):
        self.name,self.folder,self.flags,self.kills,self.rnd = name,Path(folder),list(flags),list(kills),random.Random(seed)
        self.folder.mkdir(parents=True)
        self.steps,self.out,self.ckpt,self.pid,self.starts,self.error,self.kill_at = self.folder/'steps',self.folder/'out',self.folder/'ckpt',None,0,None,None

    def start(self):
        self.plan = self.kills.pop(0) if self.kills else None
        self.starts,self.began = self.starts+1,time.monotonic()
        self.pid = os.fork()
        if self.pid: return
        try: # the child
            log = os.open(self.folder/'log', os.O_WRONLY|os.O_APPEND|os.O_CREAT, 0o644)
            os.dup2(log, 1); os.dup2(log, 2)
            if self.plan and self.plan[0]=='save': kill_in_save(*self.plan[1:], self.rnd)
            train_script.main(['--dir', str(self.ckpt), '--steps-file', str(self.steps), '--out', str(self.out), '--history', f'{self.out}.history', *self.flags])
            sys.stdout.flush(); os._exit(0)
        except BaseException:
            import traceback; traceback.print_exc(); sys.stderr.flush(); os._exit(1)

    def poll(self):
        "Kill if it is time to, go on if it was killed. Is the job done?"
        pid,status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            if time.monotonic()-self.began > 100: os.kill(self.pid, signal.SIGKILL); os.waitpid(self.pid, 0); self.error = 'took too long'; return True
            if self.plan and self.plan[0]=='step' and self.kill_at is None and self.n_lines() >= self.plan[1]: self.kill_at = time.monotonic()+self.rnd.random()*.006
            if self.kill_at and time.monotonic() >= self.kill_at: os.kill(self.pid, signal.SIGKILL); self.kill_at = None; self.plan = ('killed',)
            return False
        self.kill_at = None
        code = os.waitstatus_to_exitcode(status)
        if code==-signal.SIGKILL: self.start(); return False
        if code: self.error = f'exit code {code}: ' + (self.folder/'log').read_text()[-1500:]
        elif self.plan and self.plan!=('killed',): self.error = f'{self.plan} never came'
        return True

    def n_lines(self): return int(self.steps.read_bytes().rsplit(b'\n', 2)[-2].split()[0]) if self.steps.exists() and self.steps.stat().st_size else 0

    def compare(self, ref):
        "What is wrong with this run, or `None`"
        if self.error: return self.error
        for o in ('out', 'out.history'):
            if (self.folder/o).read_text()!=(ref.folder/o).read_text(): return f'{o} differs: {(self.folder/o).read_text()}'
        want = dict(l.split() for l in ref.steps.read_text().splitlines())
        bad = next((l for l in self.steps.read_text().splitlines() if want.get(l.split()[0])!=l.split()[1]), None)
        return f'step {bad} should be {want.get(bad.split()[0])}' if bad else None

def run_jobs(jobs, at_once=2):
    "Run all jobs, some of them at the same time"
    warm_up()
    todo,live = list(jobs),[]
    try:
        while todo or live:
            while todo and len(live) < at_once: live.append(todo.pop(0)); live[-1].start()
            time.sleep(.001)
            live = [j for j in live if not j.poll()]
    finally:
        for j in live: os.kill(j.pid, signal.SIGKILL)

def shm():
    "Memory that looks like a disk, where there is some: a real one takes longer for its fsyncs than the children for their training"
    return '/dev/shm' if os.access('/dev/shm', os.W_OK) else None

def warm_up():
    "What the first step of an optimizer imports takes seconds; the children shall find it in memory"
    import torch
    p = torch.nn.Parameter(torch.zeros(1)); p.grad = torch.zeros(1)
    opt = torch.optim.Adam([p]); opt.step(); torch.optim.lr_scheduler.OneCycleLR(opt, 1., total_steps=2)
    with tempfile.TemporaryDirectory() as d: storage.write_file(dict(opt=opt.state_dict()), Path(d)/'x'); storage.read_file(Path(d)/'x')

def make_jobs(folder, steps=10, saves=10, triples=3, augmented=5, workers=3, seed=0):
    "`{group: (reference, jobs)}`"
    rnd,folder = random.Random(seed),Path(folder)
    def job(group, i, flags, kills): return Job(f'{group} {i}', folder/group.replace(' ', '-')/str(i), flags, kills, seed*1000+i)
    def step(): return 'step',rnd.randint(1, 165)
    aug,two,acc = ['--augment'],['--augment', '--workers', '2'],['--accumulate', '4', '--every', '3']
    plain = job('reference', 0, [], [])
    refs = dict(aug=job('reference', 1, aug, []), two=job('reference', 2, two, []), acc=job('reference', 3, acc, []))
    return {'random step': (plain, [job('random step', i, [], [step()]) for i in range(steps)]),
            'during a save': (plain, [job('during a save', i, [], [('save', rnd.randint(1, 22) if (p := POINTS[i%4])!='pruning' else rnd.randint(5, 22), p)]) for i in range(saves)]),
            'three kills': (plain, [job('three kills', i, [], [('step', 30+i), ('save', 5, POINTS[i%4]), ('step', 120+i)]) for i in range(triples)]),
            'augmented': (refs['aug'], [job('augmented', i, aug, [step()]) for i in range(augmented)]),
            'two workers': (refs['two'], [job('two workers', i, two, [step()]) for i in range(workers)]),
            'accumulating': (refs['acc'], [job('accumulating', i, acc, [('step', rnd.randint(2, 40))]) for i in range(2)])}

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--steps', type=int, default=50); p.add_argument('--saves', type=int, default=50); p.add_argument('--seed', type=int, default=time.time_ns()%10000)
    args = p.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory(dir=shm()) as tmp:
        groups = make_jobs(tmp, args.steps, args.saves, triples=10, augmented=10, workers=5, seed=args.seed)
        start = time.monotonic()
        run_jobs(list({id(r): r for r,_ in groups.values()}.values())+[j for _,js in groups.values() for j in js])
        print(f'seed {args.seed}\n\n| killed | runs | starts | identical | different or failed |\n| --- | --- | --- | --- | --- |')
        for name,(ref,jobs) in groups.items():
            errs = [(j.name, e) for j in jobs if (e := j.compare(ref))]
            bad += len(errs)
            print(f'| {name} | {len(jobs)} | {sum(j.starts for j in jobs)} | {len(jobs)-len(errs)} | {len(errs)} |')
            for e in errs: print(*e, file=sys.stderr)
        print(f'\n{time.monotonic()-start:.0f} s')
    return int(bool(bad))

if __name__ == '__main__': sys.exit(main())
