"Photos of any size: the same crops however they come, nothing half-written, and runs that are killed and go on"
import multiprocessing, os, signal, time
from pathlib import Path
import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image
from torch import nn
import nntrain.data.photos as photos
from nntrain.checkpoint import CheckpointS
from nntrain.core import set_seed
from nntrain.data.items import class_names
from nntrain.data.photos import dd_photos, folder_photos, shrink
from nntrain.dataloaders import DataLoaders
from nntrain.events import Subscriber
from nntrain.learner import Learner, MetricsS
from nntrain.transforms import MixupS

pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')

def make(path, n=20, low=60, high=120):
    "Photos of two classes, reddish and greenish, of unequal sizes"
    rng = np.random.default_rng(0)
    for c in range(2):
        (path/'ab'[c]).mkdir(parents=True)
        for i in range(n//2):
            h,w = rng.integers(low, high, 2)
            x = rng.integers(0, 256, (h,w,3))//2
            x[...,c] += 100
            Image.fromarray(x.astype(np.uint8)).save(path/'ab'[c]/f'{i:02}.jpg', quality=95)
    return path

@pytest.fixture(scope='module')
def path(tmp_path_factory): return make(tmp_path_factory.mktemp('photos')/'all')

def loaders(path, bs=4, **kw): return DataLoaders.from_folder(path, bs, **{**dict(size=32, seed=1), **kw})
def same(a, b): return all(torch.equal(p, q) for x,y in zip(a, b, strict=True) for p,q in zip(x, y, strict=True))

@pytest.mark.parametrize('kw', [dict(cache=False), dict(cache=False, num_workers=1), dict(cache=False, num_workers=2), dict(cache=True, num_workers=2), 'cache_dir'])
def test_a_crop_depends_on_seed_pass_and_row_alone(path, kw, tmp_path):
    plain,other = loaders(path),loaders(path, **(dict(cache_dir=tmp_path) if kw=='cache_dir' else kw))
    for _ in range(2):
        assert same(plain.train, other.train) and same(plain.valid, other.valid)

def test_a_crop_does_not_depend_on_the_batch_it_is_in(path):
    one,four = (dict(zip(dl.plan.order(0), torch.cat([x for x,_ in dl]))) for dl in (loaders(path, 1).train, loaders(path, 5).train))
    assert one.keys()==four.keys() and all(torch.equal(one[k], four[k]) for k in one)

def test_passes_differ_and_validation_does_not(path):
    dls = loaders(path, shuffle=False)
    assert not same(list(dls.train), list(dls.train)) and same(list(dls.valid), list(dls.valid))
    assert not same(list(dls.train), list(loaders(path, shuffle=False, seed=2, valid=.2).train))

def test_a_pass_that_is_left_goes_on(path):
    dls,new = loaders(path),loaders(path)
    it = iter(dls.train)
    list(new.train)
    for _ in range(2): next(it)
    new.load_state_dict(dls.state_dict())
    assert same(list(it), list(new.train))

def test_a_data_set_gives_the_same_as_a_folder(path):
    from datasets import load_dataset
    ds = load_dataset('imagefolder', data_dir=str(path), split='train')
    files = sorted(path.rglob('*.jpg'))
    dd = {'train': ds, 'valid': ds.select(range(5))}
    for kw in ({}, dict(cache=False)):
        dls = DataLoaders.from_hf_dd(dd, 4, size=32, seed=0, shuffle=False, min_area=1., flip=False, **kw)
        assert [Path(o['image']['path']) for o in dls.train.dataset.photos.items]==files and class_names(dls)==['a', 'b']
        assert torch.equal(dls.train.dataset.photos[3], shrink(files[3], 38))
        assert torch.equal(dls.train.dataset.labels, torch.tensor(ds['label'][:]))

def test_prediction_sees_what_validation_saw(path):
    dls = loaders(path)
    learn = Learner(nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 2)), dls, F.cross_entropy, torch.optim.SGD, .01, [MetricsS()])
    data,x = dls.valid.dataset,next(iter(dls.valid))[0]
    with torch.no_grad(): probs = learn.model(x).softmax(1)
    for i in range(len(x)):
        file = data.photos.items[data.rows[i]]
        for item in (file, str(file)):
            assert torch.equal(data.item_row(item)[0], x[i])
            torch.testing.assert_close(learn.predict_item(item).probs, probs[i])
    assert learn.predict_item(file).label in 'ab'
    with pytest.raises(FileNotFoundError, match='nowhere.jpg'): learn.predict_item('nowhere.jpg')
    learn.quiet = True
    learn.fit(2)
    assert len(learn.top_losses(2))==2 and dls.stats().mean.shape==(3,)
    dls.show_batch(2)

def test_a_split_by_share(path):
    dls = loaders(path, valid=.3)
    rows = [dl.dataset.rows for dl in (dls.train, dls.valid)]
    assert sorted(torch.cat(rows).tolist())==list(range(20))
    assert dls.valid.dataset.labels[rows[1]].bincount().tolist()==[3,3]
    assert torch.equal(loaders(path, valid=.3).valid.dataset.rows, rows[1]) and not torch.equal(loaders(path, valid=.3, seed=5).valid.dataset.rows, rows[1])

def test_folders_for_training_and_validation(tmp_path):
    make(tmp_path/'train'); make(tmp_path/'val', 6); make(tmp_path/'test', 4)
    dls = loaders(tmp_path)
    assert [len(dl.dataset) for dl in (dls.train, dls.valid, dls.test)]==[20, 6, 4]
    assert not dls.test.dataset.random
    (tmp_path/'val').rename(tmp_path/'kept')
    dls = loaders(tmp_path)
    assert len(dls.valid.dataset)==4 and dls.test is None, 'the test photos validate, as with data sets'
    (tmp_path/'test'/'b').rename(tmp_path/'test'/'c')
    with pytest.raises(ValueError, match=r"test/c' is no class of the training photos, \['a', 'b'\]"): loaders(tmp_path)
    for f in (tmp_path/'test'/'c').iterdir(): f.unlink()
    (tmp_path/'test'/'c').rmdir()
    assert loaders(tmp_path).valid.dataset.labels.tolist()==[0,0], 'a class may be missing there'

def test_a_class_may_be_called_train(path, tmp_path):
    for a,b in (('a', 'train'), ('b', 'valid')):
        (tmp_path/b).mkdir()
        for f in (path/a).iterdir(): (tmp_path/b/f.name).write_bytes(f.read_bytes())
    assert class_names(loaders(tmp_path))==['train', 'valid']

def test_the_parts_of_the_two_ways_in(path):
    from datasets import load_dataset
    train,valid,test = folder_photos(path, 32, .2, 0)
    assert (len(train), len(valid), test, train.random, valid.random, train.photos is valid.photos)==(16, 4, None, True, False, True)
    sets = dd_photos(dict(train=load_dataset('imagefolder', data_dir=str(path), split='train')), 32, min_area=.5)
    assert (len(sets['train']), sets['train'].min_area, sets['train'].classes)==(20, .5, ['a', 'b'])

# ---- what can't be read
def copy_of(path, to):
    for f in path.rglob('*.jpg'):
        (to/f.parent.name).mkdir(parents=True, exist_ok=True)
        (to/f.parent.name/f.name).write_bytes(f.read_bytes())
    return to

@pytest.mark.parametrize('kw', [{}, dict(cache=False, num_workers=2), 'cache_dir'])
@pytest.mark.parametrize('spoil', ['cut', 'text', 'empty', 'animated'])
def test_a_broken_photo_is_named(path, tmp_path, kw, spoil):
    f = copy_of(path, tmp_path/'all')/'a'/'03.jpg'
    if spoil=='animated': f = f.rename(f.with_suffix('.gif'))
    kw = dict(cache_dir=tmp_path/'cache') if kw=='cache_dir' else kw
    frames = [Image.new('L', (70,70), v) for v in (0, 99)]
    if spoil=='animated': frames[0].save(f, save_all=True, append_images=frames[1:])
    else: f.write_bytes(dict(cut=f.read_bytes()[:900], text=b'no photo', empty=b'')[spoil])
    with pytest.raises(ValueError, match=f'{f.name}.*photo can.t be read.*skip_broken'): list(loaders(tmp_path/'all', **kw).train)
    assert not [*tmp_path.glob('cache/*')], 'nothing half-written stays'

@pytest.mark.parametrize('cached', [False, True])
def test_broken_photos_can_be_left_out(path, tmp_path, cached):
    f = copy_of(path, tmp_path/'all')/'b'/'07.jpg'
    f.write_bytes(b'no photo')
    kw = dict(cache_dir=tmp_path/'cache') if cached else {}
    for _ in range(2):
        with pytest.warns(UserWarning, match='1 of 20 photos can.t be read and are left out, such as .*b/07.jpg'): dls = loaders(tmp_path/'all', skip_broken=True, **kw)
        assert len(dls.train.dataset)+len(dls.valid.dataset)==19 and sum(len(x) for x,_ in [*dls.train, *dls.valid])==19
        assert all(x.shape[1:]==(3,32,32) for x,_ in dls.train)
    with pytest.raises(ValueError, match='07.jpg'): loaders(tmp_path/'all', **kw)

def test_an_empty_class_one_class_and_no_class(path, tmp_path):
    copy_of(path, tmp_path)
    (tmp_path/'c').mkdir()
    with pytest.raises(ValueError, match="c' is empty"): loaders(tmp_path)
    (tmp_path/'c').rmdir()
    (tmp_path/'a'/'notes.txt').write_text('x')
    with pytest.raises(ValueError, match='notes.txt'): loaders(tmp_path)
    with pytest.raises(ValueError, match='has 1 class'): loaders(path.parent)
    with pytest.raises(ValueError, match='has no class'): loaders(path/'a')
    with pytest.raises(OSError, match='nowhere'): loaders(tmp_path/'nowhere')

def test_phones_save_a_preview_behind_the_photo(tmp_path):
    Image.new('RGB', (400,300), 'red').save(tmp_path/'x.mpo', save_all=True, append_images=[Image.new('RGB', (20,20))])
    x = shrink((tmp_path/'x.mpo').rename(tmp_path/'x.jpg'), 60)
    assert x.shape==(3,60,80) and x[0].min() > 240

def test_unequal_sizes_without_size(path):
    from datasets import load_dataset
    dd = {'train': load_dataset('imagefolder', data_dir=str(path), split='train')}
    for kw in ({}, dict(cache=False)):
        with pytest.raises(ValueError, match='size=160'): list(DataLoaders.from_hf_dd(dd, 4, **kw).train)

# ---- where they are kept
def test_no_room_in_memory(path, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, 'free_memory', lambda: 2**20)
    dls = loaders(path)
    assert 'decoded in each pass (0.0 GB decoded is more than half of what is free' in repr(dls.train)
    assert dls.train.dataset.photos._parts is None and 'decoded once' in repr(loaders(path, cache=True).train)
    assert 'decoded once' in repr(loaders(path, cache_dir=tmp_path).train)

def test_no_room_on_the_disk(path, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, '_disk', lambda f: 2**20)
    with pytest.raises(ValueError, match='cache_dir=.*more than half of what is free.*more room'): loaders(path, cache_dir=tmp_path/'new')
    assert not (tmp_path/'new').exists()
    monkeypatch.undo()
    loaders(path, cache_dir=tmp_path/'new')
    monkeypatch.setattr(photos, '_disk', lambda f: 2**20)
    loaders(path, cache_dir=tmp_path/'new') # they are there

def decoded(monkeypatch, path, **kw):
    "The photos that are decoded to make the loaders"
    seen = []
    old = photos.shrink
    monkeypatch.setattr(photos, 'shrink', lambda o, side: (seen.append(str(o)), old(o, side))[1])
    dls = loaders(path, **kw)
    monkeypatch.setattr(photos, 'shrink', old)
    return dls,seen

def test_a_cache_is_used_again_until_a_photo_changes(path, tmp_path, monkeypatch):
    mine = copy_of(path, tmp_path/'all')
    first,seen = decoded(monkeypatch, mine, cache_dir=tmp_path/'cache')
    assert len(seen)==20
    again,seen = decoded(monkeypatch, mine, cache_dir=tmp_path/'cache')
    assert not seen and same(first.train, again.train)
    assert not decoded(monkeypatch, mine, cache_dir=tmp_path/'cache', seed=7)[1], 'another split needs no other photos'
    f = mine/'a'/'00.jpg'
    Image.new('RGB', (80,80), 'blue').save(f)
    new,seen = decoded(monkeypatch, mine, cache_dir=tmp_path/'cache')
    assert len(seen)==20 and new.train.dataset.photos[0][2].min() > 240
    os.utime(f, (0, 0)) # another photo of the same size, perhaps
    assert len(decoded(monkeypatch, mine, cache_dir=tmp_path/'cache')[1])==20

def test_a_damaged_file_is_seen(path, tmp_path):
    loaders(path, cache_dir=tmp_path)
    f, = tmp_path.iterdir()
    b = f.read_bytes()
    f.write_bytes(b[:len(b)//2]+bytes([b[len(b)//2]^1])+b[len(b)//2+1:])
    with pytest.raises(ValueError, match='checksum differs.*Delete that file'): loaders(path, cache_dir=tmp_path)

class WriteS(Subscriber):
    order = 2000
    def __init__(self, out): self.out = out
    def after_step(self, learn):
        with open(self.out/'steps', 'a') as f: f.write(f'{learn.epoch} {learn.loss.item():.17g}\n')
        time.sleep(.02)

def train(path, out, kind):
    photos.STEP = 8
    if kind=='cache_dir': # slow enough to be killed in the middle
        old = photos.shrink
        photos.shrink = lambda o, side: (time.sleep(.05), old(o, side))[1]
    set_seed(0)
    kw = dict(cache_dir=out/'cache') if kind=='cache_dir' else dict(cache=False, num_workers=2) if kind=='workers' else {}
    dls = loaders(path, seed=3, **kw)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    subs = [MixupS(.4, cutmix=kind!='memory'), CheckpointS(out/'ckpt', every=1), WriteS(out)]
    learn = Learner(model, dls, F.cross_entropy, torch.optim.Adam, .01, subs)
    learn.quiet = True
    learn.fit(6)
    torch.save(model.state_dict(), out/'weights.pt')

def run(path, out, kind, kill_when=None):
    "Train in a process of its own, a fork of this one, and kill it when there is something to see"
    out.mkdir(exist_ok=True)
    p = multiprocessing.get_context('fork').Process(target=train, args=(path, out, kind))
    p.start()
    end = time.monotonic()+120
    while kill_when and p.is_alive() and not kill_when(out) and time.monotonic() < end: time.sleep(.005)
    if kill_when: p.kill()
    p.join(120)
    assert p.exitcode==(-signal.SIGKILL if kill_when else 0)

def steps(out): return (out/'steps').read_text().splitlines() if (out/'steps').exists() else []

@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='no fork here')
@pytest.mark.parametrize('kind', [pytest.param(k, marks=pytest.mark.slow if k!='memory' else ()) for k in ('memory', 'workers', 'cache_dir')])
def test_killed_and_resumed_is_the_same_to_the_last_bit(path, tmp_path, kind):
    run(path, ref := tmp_path/'ref', kind)
    out = tmp_path/'out'
    if kind=='cache_dir': # killed while it decodes: whole parts stay, and are used
        run(path, out, kind, lambda o: len([*o.glob('cache/*.pt')])==1)
        kept = {f.name: f.read_bytes() for f in out.glob('cache/*.pt')}
        assert 1 <= len(kept) < 3 and not steps(out)
    run(path, out, kind, lambda o: len(steps(o)) > 10)
    n = len(steps(out))
    assert 10 < n < 24
    run(path, out, kind)
    if kind=='cache_dir': assert sorted(f.name for f in (out/'cache').iterdir())==sorted(f.name for f in (ref/'cache').iterdir()) and all((out/'cache'/k).read_bytes()==v for k,v in kept.items())
    assert set(steps(out))==set(steps(ref)) and len(steps(ref))==24
    a,b = (torch.load(o/'weights.pt') for o in (ref, out))
    assert all(torch.equal(a[k], b[k]) for k in a)
