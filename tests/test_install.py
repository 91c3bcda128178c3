"""What users get: the built wheel in an empty environment, with no nbdev and no Jupyter. `make dist` builds the wheel and runs this.

The requirements are borrowed from the environment that runs the tests: installing PyTorch again would prove nothing about nntrain."""
import email, os, subprocess, sys, sysconfig, zipfile
from pathlib import Path
import pytest

wheel = os.environ.get('NNTRAIN_WHEEL')
pytestmark = pytest.mark.skipif(not wheel, reason='needs a wheel: `make dist` builds one and runs these tests')

@pytest.fixture(scope='module')
def python(tmp_path_factory):
    "Run Python code in a new environment that has the wheel and its requirements; `without` names packages that it can't import"
    home = tmp_path_factory.mktemp('venv')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', home/'env'], check=True)
    exe = home/'env'/'bin'/'python'
    subprocess.run([sys.executable, '-m', 'pip', '--python', exe, 'install', '--quiet', '--disable-pip-version-check', '--no-deps', wheel], check=True,
                   env={k: v for k,v in os.environ.items() if k!='PYTHONPATH'})
    def run(code, *without):
        banned = ('nbdev', 'execnb', 'IPython', 'ipykernel', 'jupyter_client', 'nbclient', 'pytest', *without)
        start = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); sys.modules.update(dict.fromkeys({banned!r}))\n"
        return subprocess.run([exe, '-I', '-c', start+code], cwd=home, capture_output=True, text=True, timeout=300)
    return run

def test_every_module_imports(python):
    res = python('''import pkgutil, nntrain
from importlib import import_module
for m in pkgutil.walk_packages(nntrain.__path__, 'nntrain.'): import_module(m.name); print(m.name)
print(nntrain.__file__, nntrain.__version__)''')
    assert res.returncode==0, res.stderr
    assert 'nntrain.learner' in res.stdout and '/env/lib/' in res.stdout

fit = '''import torch, torch.nn.functional as F
from torch import nn
from nntrain.core import get_dataset, set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.learner import Learner, MetricsS, ProgressS
set_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
learn = Learner(model, DataLoaders.from_hf_dd(get_dataset('digits'), 64), F.cross_entropy, torch.optim.Adam, 1e-2, [MetricsS(), ProgressS()])
learn.fit(3)
assert learn.history[-1]['loss'] < 0.5'''

def test_it_trains_digits(python):
    res = python(fit)
    assert res.returncode==0, res.stderr
    assert res.stdout.split()[:3]==['epoch', 'mode', 'loss']

def test_digits_without_scikit_learn(python):
    res = python(fit, 'sklearn', 'sklearn.datasets')
    assert res.returncode!=0 and 'pip install scikit-learn' in res.stderr.splitlines()[-1]

def test_the_command(python):
    res = python('''import shutil, subprocess, sys
from pathlib import Path
print((Path(sys.executable).parent/'nntrain_train').read_text())''')
    assert 'from nntrain.cli import nntrain_train' in res.stdout

def test_a_recording_shows_itself(python):
    "The player is a file beside the module, which the wheel must have"
    res = python(fit + """
page = learn.record()._repr_html_()
assert '<script>' in page and 'after_backward' in page""")
    assert res.returncode==0, res.stderr

def test_metadata():
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        meta = email.message_from_string(z.read(next(n for n in names if n.endswith('.dist-info/METADATA'))).decode())
    assert {n.split('/')[0] for n in names if '.dist-info' not in n}=={'nntrain'}, 'only the library is in the wheel'
    assert any(n.endswith('LICENSE') for n in names)
    assert meta['Name']=='nntrain' and meta['Requires-Python']=='>=3.10' and 'Apache-2.0' in (meta['License'], meta['License-Expression'])
    assert not {r for r in meta.get_all('Requires-Dist') if 'extra ==' not in r and r.startswith(('nbdev', 'pytest', 'ipykernel'))}
    assert {u.split(',')[0] for u in meta.get_all('Project-URL')} >= {'Documentation', 'Changelog'}
    assert any(c.startswith('Programming Language :: Python :: 3.10') for c in meta.get_all('Classifier'))
    text = meta.get_payload()
    assert meta['Description-Content-Type']=='text/markdown' and text.startswith('# nntrain')
    links = [l.split(')')[0] for l in text.split('](')[1:]]
    assert links and all(l.startswith('https://') for l in links), 'the links work on a package index too'

def test_sdist_holds_what_it_needs():
    "The wheel was built from the sdist, so that works; the texts must be there too"
    import tarfile
    with tarfile.open(next(Path(wheel).resolve().parent.glob('*.tar.gz'))) as t: names = {n.split('/', 1)[-1] for n in t.getnames()}
    assert {'settings.ini', 'setup.py', 'README.md', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md'} <= names
