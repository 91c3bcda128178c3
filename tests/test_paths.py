"""Names stay where people look for them: the import paths of the documents, and those of the original's lessons."""
import subprocess, sys
from importlib import import_module
import pytest

# What README, home, at a glance and the tutorials import or name, by the module where they find it
documents = {
    'core': 'set_seed digits get_dataset',
    'dataloaders': 'DataLoaders hf_ds_collate_fn inplace',
    'plotting': 'show_image',
    'events': 'CancelFitException CancelEpochException CancelBatchException Subscriber Publisher PublishEvents '
              'show_events',
    'subscribers': 'MetricsS DeviceS LRFindS ProgressS',
    'learner': 'device Learner MomentumLearner CancelFitException CancelEpochException CancelBatchException PublishEvents '
               'Subscriber MetricsS DeviceS LRFindS ProgressS show_events',
    'schedule': 'StatefulS SchedulerS warmup_cosine warmup_linear one_cycle EarlyStoppingS',
    'acceleration': 'GradAccumS MixedPrecisionS GradClipS EMAS AugmentS NormalizationS',
    'checkpoint': 'CheckpointS',
    'verify': '',
    'activations': 'ActivationStatsS',
    'check': '',
    'results': 'PredictionsS',
    'inspect': 'ModelMonitorS summary TimerS ShortRunS ActivationStatsS PredictionsS',
    'models': 'mlp cnn cnn_layers init_weights resnet',
    'trainable': 'Model EarlyStopping',
    'cli': 'nntrain_train nntrain_lr_find nntrain_predict',
    'scratch.nn': 'cross_entropy accuracy Module Linear ReLU Sequential',
    'scratch.data': 'Loaders Dataset Sampler BatchSampler collate DataLoader',
    'scratch.optim': 'SGD Adam AdamW fit',
}
# What the original's lessons on activations and acceleration export, and readers of its posts import from there
lessons = {
    'activations': 'set_seed Hook ActivationStatsS init_weights NormalizationS conv_block cnn_layers',
    'acceleration': 'SchedulerS conv_conn ResBlock resnet ModelMonitorS AugmentS',
}
# Methods that the documents call on a learner and on data loaders
methods = {
    'learner.Learner': 'check compile confusion_matrix fit fit_one_cycle get_preds load lr_find plot_confusion plot_grad_norm '
                       'plot_losses plot_lr plot_top_losses predict_item save show_results validate verify_resume',
    'dataloaders.DataLoaders': 'from_datasets from_hf_dd load_state_dict one_batch show_batch',
}
paths = [(m, names.split()) for d in (documents, lessons) for m, names in d.items()]

@pytest.mark.parametrize('module,names', paths, ids=[m for m, _ in paths])
def test_names_are_where_they_are_looked_for(module, names):
    for name in names: exec(f'from nntrain.{module} import {name}', {})
    import_module(f'nntrain.{module}')

@pytest.mark.parametrize('path', methods)
def test_methods_are_there(path):
    module, cls = path.split('.')
    missing = [o for o in methods[path].split() if not hasattr(getattr(import_module(f'nntrain.{module}'), cls), o)]
    assert not missing

def test_each_alone():
    "Each path works as the first import of a process, and names of later rooms load them only when they are asked for"
    code = '''
import sys
from importlib import import_module
for module in sys.argv[1:]:
    for m in [m for m in sys.modules if m.split('.')[0]=='nntrain']: del sys.modules[m]
    import_module(f'nntrain.{module}')
    if module=='acceleration': assert 'nntrain.models' not in sys.modules, 'acceleration loads the models'
'''
    res = subprocess.run([sys.executable, '-c', code, *documents], capture_output=True, text=True)
    assert not res.returncode, res.stderr

def test_the_lessons_names_are_the_library_s():
    "What is found in two places is one thing"
    for module, home in (('activations', 'models'), ('acceleration', 'models'), ('acceleration', 'inspect')):
        for name in lessons[module].split():
            a, b = (getattr(import_module(f'nntrain.{o}'), name, None) for o in (module, home))
            assert b is None or a is b

def test_the_lessons_code_works():
    "The networks of the original's posts, with its arguments"
    import torch
    from torch import nn
    from nntrain.acceleration import ResBlock, conv_conn, resnet
    from nntrain.activations import cnn_layers, conv_block, init_weights
    x = torch.rand(4, 1, 28, 28)
    assert cnn_layers(True).apply(init_weights)(x).shape == resnet()(x).shape == (4, 10)
    assert conv_block(1, 8, 5, False, False)(x).shape == conv_conn(1, 8, 3, 2)(x).shape == ResBlock(1, 8, 2)(x).shape == (4, 8, 14, 14)
    assert isinstance(conv_block(1, 8, act=False, norm=False), nn.Conv2d)
