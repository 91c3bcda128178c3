"""Export through packages that aren't among the requirements."""
import json
import pytest,torch
import torch.nn.functional as F
from functools import partial
from nntrain.core import get_dataset,set_seed
from nntrain.dataloaders import DataLoaders,hf_ds_collate_fn
from nntrain.export import from_folder,run_settings
from nntrain.learner import Learner,MetricsS
from nntrain.metrics import Accuracy
from nntrain.models import cnn,mlp

@pytest.fixture
def learn():
    set_seed(0)
    dls = DataLoaders.from_hf_dd(get_dataset('digits'), 64, partial(hf_ds_collate_fn, flatten=False), seed=0)
    learn = Learner(cnn(), dls, F.cross_entropy, torch.optim.SGD, .1, [MetricsS(accuracy=Accuracy())])
    learn.quiet = True
    learn.fit(1)
    return learn

def test_onnx_gives_what_the_model_gives(learn, tmp_path):
    for package in 'onnx','onnxscript','onnxruntime': ort = pytest.importorskip(package)
    learn.export(tmp_path/'m.onnx')
    session,x = ort.InferenceSession(tmp_path/'m.onnx'),learn.dls.one_batch()[0]
    for n in 1,5,64:
        got = torch.as_tensor(session.run(None, {session.get_inputs()[0].name: x[:n].numpy()})[0])
        torch.testing.assert_close(got, learn.model.eval()(x[:n]), rtol=1e-5, atol=1e-5)

def test_a_package_that_is_missing_is_named(learn, tmp_path, monkeypatch):
    monkeypatch.setattr('nntrain.export.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='pip install onnx onnxscript onnxruntime'):
        learn.export(tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir())

def test_folder_to_share(learn, tmp_path):
    pytest.importorskip('safetensors')
    learn.to_folder(tmp_path/'digits')
    assert {f.name for f in (tmp_path/'digits').iterdir()}=={'model.safetensors', 'config.json', 'README.md'}
    other = cnn()
    config = from_folder(tmp_path/'digits', other)
    x = learn.dls.one_batch()[0]
    assert torch.equal(other.eval()(x), learn.model.eval()(x))
    assert config==json.loads((tmp_path/'digits/config.json').read_text())
    assert config['classes']==[str(i) for i in range(10)] and config['shape']==[1, 8, 8] and config['lr']==.1
    assert config['validation']['accuracy']==learn.history[-1]['accuracy']
    card = (tmp_path/'digits/README.md').read_text()
    assert f"| accuracy | {learn.history[-1]['accuracy']:.4g} |" in card and '# digits' in card
    with pytest.raises(ValueError, match='missing'): from_folder(tmp_path/'digits', mlp(64))

def test_without_a_network_the_hub_says_so(learn, monkeypatch):
    pytest.importorskip('safetensors')
    with pytest.raises(Exception, match='offline|Offline|connect'): learn.push_to_hub('nobody/nothing')

def test_settings_say_how_the_run_was_made(learn):
    got = run_settings(learn)
    assert (got['optimizer'], got['loss_fn'], got['seed'], got['epochs'])==('SGD', 'cross_entropy', 0, 1)
    assert 'MetricsS' in got['subscribers'] and got['torch']==torch.__version__
