import os, subprocess, sys
from pathlib import Path
import pytest
from filelock import FileLock

# Before torch is imported: a child that is forked hangs where its parent computed with several threads, and few cores get slower by them
os.environ['OMP_NUM_THREADS'] = '1'

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The documentation, built by pandoc: once, also when several processes share the tests"
    top = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: top = top.parent
    out = top/'site'/'docs'
    with FileLock(top/'site.lock'):
        if not out.exists():
            res = subprocess.run([sys.executable, root/'tools'/'docs.py', out], capture_output=True, text=True, timeout=300)
            assert res.returncode==0, res.stdout[-3000:] + res.stderr[-3000:]
    return out
