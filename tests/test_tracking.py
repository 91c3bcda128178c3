"""The trackers themselves: what they have on disk is what was trained."""
import os,sqlite3
from pathlib import Path
import pytest,torch
import torch.nn.functional as F
from nntrain.checkpoint import CheckpointS
from nntrain.core import get_dataset,set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.learner import Learner,MetricsS,Subscriber
from nntrain.metrics import Accuracy
from nntrain.models import mlp
from nntrain.tracking import TrackerS

class KillS(Subscriber):
    order = 300
    def __init__(self, at): self.at = at
    def after_batch(self, learn):
        self.at -= 1
        if not self.at: raise KeyboardInterrupt

def run(tmp_path, kind, name, at=0):
    set_seed(0)
    dls = DataLoaders.from_hf_dd(get_dataset('digits'), 64, seed=0)
    learn = Learner(mlp(64), dls, F.cross_entropy, torch.optim.SGD, .1, [MetricsS(accuracy=Accuracy())])
    learn.quiet = True
    subs = [TrackerS(f'{kind}:{tmp_path}/runs', every=5, name=name), CheckpointS(tmp_path/name, every=10), KillS(at)]
    try: learn.fit(2, subs=subs)
    except KeyboardInterrupt: pass
    return learn

def test_tensorboard_has_the_history_and_a_killed_run_has_each_step_once(tmp_path):
    acc = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    whole = run(tmp_path, 'tensorboard', 'whole')
    run(tmp_path, 'tensorboard', 'a', at=33)
    run(tmp_path, 'tensorboard', 'a')
    curves = []
    for name in 'whole','a':
        events = acc.EventAccumulator(str(tmp_path/'runs'/name))
        events.Reload()
        curves.append({k: [(e.step, e.value) for e in events.Scalars(k)]
                       for k in ('train/loss', 'lr/0', 'valid/loss', 'valid/accuracy')})
    assert curves[0]==curves[1]
    valid = [r for r in whole.history if r['mode']=='eval']
    assert curves[0]['valid/accuracy']==[(23*(r['epoch']+1), pytest.approx(r['accuracy'])) for r in valid]
    assert [s for s,_ in curves[0]['train/loss']]==[*range(5, 46, 5)]
    assert set(events.Tags()['images'])=={'losses', 'confusion'}
    assert 'SGD' in events.Tensors('settings/text_summary')[0].tensor_proto.string_val[0].decode()

def test_trackio_has_the_history(tmp_path, monkeypatch):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path/'db'))
    pytest.importorskip('trackio')
    run(tmp_path, 'trackio', 'a', at=33)
    whole = run(tmp_path, 'trackio', 'a')
    file, = Path(os.environ['TRACKIO_DIR']).glob('*.db')
    with sqlite3.connect(file) as db: rows = db.execute('select step, metrics from metrics order by step').fetchall()
    losses = [s for s,m in rows if b'train/loss' in (m if isinstance(m, bytes) else m.encode())]
    assert losses==[*range(5, 46, 5)] and len(whole.history)==4

def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    run(tmp_path, 'wandb', 'a')
    assert list((tmp_path/'runs'/'wandb').glob('offline-run-*-a'))
