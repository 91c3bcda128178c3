import subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The documentation, built once by pandoc"
    out = tmp_path_factory.mktemp('site')/'docs'
    res = subprocess.run([sys.executable, root/'tools'/'docs.py', out], capture_output=True, text=True, timeout=300)
    assert res.returncode==0, res.stdout[-3000:] + res.stderr[-3000:]
    return out
