"""The file-system calls that a block makes in a folder, seen one by one: to let one fail, to be killed in one, to write
them down. As far as Python makes them: what torch does with a path in C++ isn't seen."""
import builtins, fcntl, io, os, threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

BY_PATH = dict.fromkeys('mkdir rmdir unlink remove listdir scandir stat lstat utime chmod truncate'.split(), 1) | dict.fromkeys('rename replace link symlink'.split(), 2)
BY_FILE = [k for k in 'fsync fdatasync ftruncate pwrite write writev sendfile'.split() if hasattr(os, k)]

class Watched:
    "An open file whose calls are seen; when closing fails, it is closed all the same"
    def __init__(self, f, see): self.f,self.see = f,see
    def __getattr__(self, k): return getattr(self.f, k)
    def __enter__(self): return self
    def __exit__(self, *exc): self.close()
    def __iter__(self): return iter(self.f)
    def write(self, b): return self.see('write', lambda: self.f.write(b))
    def flush(self): return self.see('flush', self.f.flush)
    def close(self):
        if self.f.closed: return
        try: self.see('close', self.f.close)
        finally: self.f.close()

@contextmanager
def watched(folder, see):
    """Within the block each call in `folder` becomes `see(name, paths, call)`, which returns `call()` or raises. Calls
    made by `see` aren't seen. Opening a file is `'create'` if it isn't there, or else `'open'`."""
    root,files,local = os.path.realpath(folder),{},threading.local()
    real = dict(open=open, os_open=os.open, close=os.close, exists=os.path.exists)
    def here(p):
        if isinstance(p, int): return files.get(p)
        if not isinstance(p, (str, bytes, os.PathLike)): return None
        p = os.path.abspath(os.fsdecode(p))
        return Path(p) if p==root or p.startswith(root+os.sep) else None
    def seen(name, paths, call):
        if getattr(local, 'inside', False) or not any(paths): return call()
        local.inside = True
        try: return see(name, [p for p in paths if p], call)
        finally: local.inside = False
    def by_path(name, n, f): return lambda *args, **kwargs: seen(name, [here(p) for p in args[:n] or ['.']], lambda: f(*args, **kwargs))
    def by_file(name, f): return lambda f_, *args, **kwargs: seen(name, [here(f_ if isinstance(f_, int) else f_.fileno())], lambda: f(f_, *args, **kwargs))
    def opened(name, p, creates, call):
        res = seen(name if not creates or getattr(local, 'inside', False) or real['exists'](p) else 'create', [p], call)
        return res
    def os_open(path, flags, *args, **kwargs):
        fd = opened('open', p := here(path), flags & os.O_CREAT and p, lambda: real['os_open'](path, flags, *args, **kwargs))
        if p: files[fd] = p
        return fd
    def close(fd):
        files.pop(fd, None)
        return real['close'](fd)
    def open_(file, mode='r', *args, **kwargs):
        p,writes = None if isinstance(file, int) else here(file),set(mode) & set('wax+')
        f = opened('open', p, p and set(mode) & set('wax'), lambda: real['open'](file, mode, *args, **kwargs))
        if not p or not writes or getattr(local, 'inside', False): return f
        files[fd := f.fileno()] = p
        def see_file(name, call):
            if name=='close': files.pop(fd, None)
            return seen(name, [p], call)
        return Watched(f, see_file)
    new = [(os, k, by_path(k, n, getattr(os, k))) for k,n in BY_PATH.items()]+[(os, k, by_file(k, getattr(os, k))) for k in BY_FILE]
    new += [(fcntl, 'flock', by_file('flock', fcntl.flock)), (os, 'open', os_open), (os, 'close', close), (builtins, 'open', open_), (io, 'open', open_)]
    with ExitStack() as stack:
        for owner,name,f in new: stack.enter_context(patch.object(owner, name, f))
        yield
