"Tables: every bad input is refused by name, one row is what it is in a batch, and a killed run goes on to the last bit."
import os, signal, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.learner import Learner
from nntrain.models import tabular_mlp

root = Path(__file__).resolve().parent.parent

def frame(n=60):
    rng = np.random.default_rng(0)
    return pd.DataFrame(dict(area=rng.uniform(20, 150, n), city=rng.choice(['Bonn', 'Kiel', 'Ulm'], n), lift=rng.random(n)>.5, rent=rng.uniform(1, 2, n), kind=rng.choice(['new', 'old'], n)))

def change(**cells):
    "The frame with other values: column=(row, value)"
    df = frame().astype(object)
    for c,(i,v) in cells.items(): df.loc[i,c] = v
    return df.infer_objects()

# ---- what is in a batch
def test_numbers_are_standardised_by_the_training_rows_alone():
    df = frame()
    dls = DataLoaders.from_df(df, 'rent', 16, seed=0, cat=[], cont=['area', 'lift'])
    train,valid = (o.dataset.ds for o in (dls.train, dls.valid))
    x,want = train.tensors[0].double(),df.loc[train.raw.index, ['area', 'lift']].to_numpy(float)
    assert x.mean(0).abs().max()<1e-6 and (x.std(0, correction=0)-1).abs().max()<1e-6
    assert np.allclose(valid.tensors[0], (df.loc[valid.raw.index, ['area', 'lift']].to_numpy(float)-want.mean(0))/want.std(0), atol=1e-6)
    assert len(x)==48 and not set(train.raw.index) & set(valid.raw.index)

def test_missing_values_and_categories():
    df = change(area=(0, None), city=(1, None))
    dls = DataLoaders.from_df(df, 'rent', 16, seed=0, valid=df.assign(area=np.nan), cat=['city', 'kind'], cont=['area'])
    x,names = dls.train.dataset.ds.tensors[0],dls.preprocessor.names
    assert names==['area', 'missingindicator_area', 'city', 'kind'] and dls.preprocessor.sizes==dict(n_cont=2, cat_sizes=[4, 2], n_out=1)
    assert x[0,:2].tolist()==[0, 1] and x[1,2]==0 # '' is the first of the categories
    assert (x[:,2]==torch.tensor([['', 'Bonn', 'Kiel', 'Ulm'].index(c if isinstance(c, str) else '') for c in df.city])).all()
    assert dls.valid.dataset.ds.tensors[0][:,:2].unique(dim=0).tolist()==[[0, 1]]

def test_the_split_is_seeded_and_keeps_the_shares_of_the_classes():
    df = frame(200).assign(kind=['rare']*20+['often']*180)
    a,b,c = (DataLoaders.from_df(df, 'kind', 16, split_seed=s).valid.dataset.ds for s in (0, 0, 1))
    assert a.raw.index.equals(b.raw.index) and not a.raw.index.equals(c.raw.index)
    assert a.raw.kind.value_counts().to_dict()==c.raw.kind.value_counts().to_dict()==dict(often=36, rare=4)

def test_targets_and_names_of_classes():
    df = frame()
    assert DataLoaders.from_df(df, 'rent').one_batch()[1].shape[1:]==(1,)
    for target,names in (('kind', ['new', 'old']), ('lift', [False, True])):
        dls = DataLoaders.from_df(df, target, 64, valid=None, shuffle=False)
        assert dls.preprocessor.classes==names and [names[i] for i in dls.one_batch()[1]]==df[target].tolist()
    dls = DataLoaders.from_df(df.assign(year=[1980, 1990]*30), 'year', 64, valid=None, shuffle=False)
    assert dls.preprocessor.classes==[1980, 1990] and dls.one_batch()[1][:4].tolist()==[0, 1, 0, 1]

@pytest.mark.parametrize('kind', ['numpy', 'torch'])
def test_arrays(kind):
    rng = np.random.default_rng(0)
    X,y = rng.normal(5, 2, (50, 3)),rng.integers(0, 3, 50)
    if kind=='torch': X,y = torch.tensor(X).float(),torch.tensor(y)
    dls = DataLoaders.from_arrays(X, y, 16, seed=0, valid=(X[:9], y[:9]))
    x,targets = dls.train.dataset.ds.tensors
    assert x.dtype==torch.float32 and x.mean(0).abs().max()<1e-5 and targets.tolist()==y.tolist()
    assert torch.equal(dls.valid.dataset.ds.tensors[0], x[:9]) and len(DataLoaders.from_arrays(X, y).valid.dataset)==10

def test_a_file(tmp_path):
    df = frame()
    df.to_csv(tmp_path/'a.csv') # with the numbers of the rows, which are no feature
    a,b = DataLoaders.from_csv(tmp_path/'a.csv', 'kind', 16, seed=0),DataLoaders.from_df(df, 'kind', 16, seed=0)
    assert a.preprocessor.names==b.preprocessor.names==['area', 'lift', 'rent', 'city']
    assert all(torch.allclose(x, y) for x,y in zip(a.one_batch(), b.one_batch()))
    assert len(DataLoaders.from_csv(tmp_path/'a.csv', 'kind', valid=str(tmp_path/'a.csv')).valid.dataset)==60

def test_transformers_of_ones_own():
    df = change(area=(0, None))
    fill = make_pipeline(SimpleImputer(), StandardScaler())
    own = make_column_transformer((OneHotEncoder(), ['city']), (fill, ['area']))
    dls = DataLoaders.from_df(df, 'rent', transform=own)
    assert dls.preprocessor.names[:2]==['onehotencoder__city_Bonn', 'onehotencoder__city_Kiel'] and dls.preprocessor.sizes==dict(n_cont=4, cat_sizes=[], n_out=1)
    assert not hasattr(own, 'transformers_') and hasattr(dls.preprocessor.transform, 'transformers_') # a copy was fitted
    fitted = StandardScaler().fit(frame()[['area']]*2)
    dls = DataLoaders.from_df(frame(), 'rent', transform=fitted, cat=[], cont=['area'], valid=None, shuffle=False)
    assert dls.preprocessor.transform is fitted and np.allclose(dls.one_batch()[0], fitted.transform(frame()[['area']])[:64], atol=1e-6)
    dls = DataLoaders.from_df(frame(), 'rent', transform=make_pipeline(StandardScaler(), FunctionTransformer(np.tanh)), cat=[], cont=['area'])
    assert dls.preprocessor.names==['x0'] and dls.one_batch()[0].abs().max()<1
    with pytest.raises(ValueError, match="split 'valid': Found unknown categories"): DataLoaders.from_df(frame(), 'rent', transform=make_column_transformer((OneHotEncoder(), ['city'])), valid=change(city=(3, 'Jena')))

# ---- a new thing goes the same way
def test_one_row_and_a_new_table_are_what_validation_makes_of_them():
    df = change(area=(5, None))
    dls = DataLoaders.from_df(df, 'kind', 16, seed=0)
    set_seed(0)
    learn = Learner(tabular_mlp(**dls.preprocessor.sizes), dls, F.cross_entropy, torch.optim.Adam, .01)
    learn.fit(2)
    table,preds = dls.valid.dataset.ds,learn.get_preds()
    for i in range(4):
        row = table.raw.iloc[i]
        for item in (row, row.to_dict(), row.drop('kind').to_dict()):
            assert torch.equal(table.item_row(item)[0], table.tensors[0][i])
            assert torch.allclose(learn.predict_item(item).probs, preds[i].softmax(0), atol=1e-6)
    assert learn.predict_item(row).label in ('new', 'old')
    new = table.raw.drop(columns='kind').sample(frac=1, random_state=0)
    assert torch.allclose(learn.get_preds([(dls.preprocessor.features(new),)]), preds[[table.raw.index.get_loc(i) for i in new.index]], atol=1e-6)
    with pytest.raises(ValueError, match="item has no column .*city"): learn.predict_item(dict(area=3, lift=True, rent=1))
    with pytest.raises(ValueError, match="item, row 0, column 'area': 'big'"): learn.predict_item({**row, 'area':'big'})
    X = np.random.default_rng(0).normal(5, 2, (20, 3))
    dls = DataLoaders.from_arrays(X, np.arange(20)%2, 8, valid=None, shuffle=False)
    for item in (X[3], X[3].tolist(), torch.tensor(X[3])): assert torch.allclose(dls.train.dataset.ds.item_row(item)[0], dls.one_batch()[0][3])

# ---- bad input
many = frame().assign(area=[*map(str, range(59)), 'n/a'])
X,y = np.ones((8, 3))*np.arange(8)[:,None],np.arange(8)%2
def cell(i, j, v): a = X.copy(); a[i,j] = v; return a
bad = {
    'target missing': (lambda: DataLoaders.from_df(frame(), 'rents'), "the data has no column 'rents', only"),
    'text among numbers': (lambda: DataLoaders.from_df(change(area=(5, 'big')), 'kind'), "the data, row 5, column 'area': 'big' .rows like that: 1. is no finite number.*cat="),
    'text among numbers, as text': (lambda: DataLoaders.from_df(many, 'kind'), "row 59, column 'area': 'n/a'"),
    'named as numbers': (lambda: DataLoaders.from_df(frame(), 'kind', cont=['city']), "row .*, column 'city': '(Bonn|Kiel|Ulm)'"),
    'infinite': (lambda: DataLoaders.from_df(change(area=(5, np.inf)), 'kind'), "row 5, column 'area': inf"),
    'a date': (lambda: DataLoaders.from_df(frame().assign(day=pd.Timestamp('2026-11-25')), 'kind'), "column 'day': Timestamp"),
    'NaN in the target': (lambda: DataLoaders.from_df(change(rent=(7, np.nan)), 'rent'), r"row 7, column 'rent': nan .*df\.dropna"),
    'None in the classes': (lambda: DataLoaders.from_df(change(kind=(7, None)), 'kind'), "row 7, column 'kind': (nan|None)"),
    'text in the target': (lambda: DataLoaders.from_df(change(rent=(7, '1,2')), 'rent'), "row 7, column 'rent': '1,2'"),
    'one class': (lambda: DataLoaders.from_df(frame().assign(kind='new'), 'kind'), r"one class only, \['new'\]"),
    'a class without training rows': (lambda: DataLoaders.from_df(frame(), 'kind', valid=change(kind=(2, 'odd'))), "split 'valid', row 2, column 'kind': 'odd'"),
    'a class that is only held out': (lambda: DataLoaders.from_df(change(kind=(2, 'a')), 'kind', valid=.98), "the data, row ., column 'kind': '...' .* is no class"),
    'no rows': (lambda: DataLoaders.from_df(frame()[:0], 'kind'), "the data has no rows"),
    'no values': (lambda: DataLoaders.from_df(frame().assign(e=np.nan), 'kind'), r"no values in \['e'\]"),
    'unknown column': (lambda: DataLoaders.from_df(frame(), 'kind', cat=['citi']), r"has no column \['citi'\]"),
    'validation lacks a column': (lambda: DataLoaders.from_df(frame(), 'kind', valid=frame().drop(columns='city')), r"split 'valid' has no column \['city'\]"),
    'unequal length': (lambda: DataLoaders.from_arrays(X, y[1:]), r"X of shape \(8, 3\) and y of shape \(7,\)"),
    'one dimension': (lambda: DataLoaders.from_arrays(X[:,0], y), r"from_datasets\(TensorDataset"),
    'infinite in an array': (lambda: DataLoaders.from_arrays(cell(3, 2, np.inf), y), "row 3, column 'x2': inf"),
    'NaN in y': (lambda: DataLoaders.from_arrays(X, np.where(y==0, np.nan, 1.)), "row 0, column 'y': nan"),
    'missing after the transform': (lambda: DataLoaders.from_arrays(cell(3, 2, np.nan), y, valid=None, transform=StandardScaler()), "row 3, column 'x2': nan .* after the transform"),
    'no share': (lambda: DataLoaders.from_arrays(X, y, valid=.01), 'valid must be a share'),
    'no table': (lambda: DataLoaders.from_df({'a': 1}, 'a'), "can't be read as a CSV file")}

@pytest.mark.parametrize('name', bad)
def test_bad_input_is_named(name):
    f,match = bad[name]
    with pytest.raises(ValueError, match=match): f()

def test_bad_files_are_named(tmp_path):
    f = tmp_path/'flats.csv'
    for df,match in ((frame(), "flats.csv has no column 'price'"), (change(area=(5, 'big')).rename(columns={'kind':'price'}), "flats.csv, row 5, column 'area': 'big'"),
                     (change(kind=(7, None)).rename(columns={'kind':'price'}), "flats.csv, row 7, column 'price'"), (frame()[:0].assign(price=1), 'flats.csv has no rows')):
        df.to_csv(f, index=False)
        with pytest.raises(ValueError, match=match): DataLoaders.from_csv(f, 'price')
    f.write_text('')
    with pytest.raises(ValueError, match="flats.csv can't be read"): DataLoaders.from_csv(f, 'price')
    f.write_text('area;price\n1;2\n')
    with pytest.raises(ValueError, match="only .'area;price'.*sep="): DataLoaders.from_csv(f, 'price')
    with pytest.raises(FileNotFoundError, match='none.csv'): DataLoaders.from_csv(tmp_path/'none.csv', 'price')

def test_a_category_that_training_lacks_is_unknown_and_named():
    df = change(city=(3, 'Jena'))
    with pytest.warns(UserWarning, match="split 'valid', row 3, column 'city': 'Jena' .rows like that: 1. isn't a category"): dls = DataLoaders.from_df(frame(), 'kind', 16, valid=df)
    assert dls.valid.dataset.ds.tensors[0][3,-1]==-1
    model = tabular_mlp(**dls.preprocessor.sizes)
    assert (model[0](dls.valid.dataset.ds.tensors[0][3:4])[0,3:]==0).all()
    with pytest.warns(UserWarning, match="item, row 0, column 'city': 'Jena'"): dls.valid.dataset.ds.item_row(df.iloc[3].to_dict())

@pytest.mark.parametrize('module', ['pandas', 'sklearn.compose'])
def test_a_missing_package_is_named(module, monkeypatch):
    df = frame()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"{module.split('.')[0]}: pip install pandas scikit-learn"): DataLoaders.from_df(df, 'kind')

# ---- killed and resumed
script = '''
import os, signal, sys, warnings, torch, torch.nn.functional as F
from nntrain.checkpoint import CheckpointS
from nntrain.core import set_seed
from nntrain.dataloaders import DataLoaders
from nntrain.events import Subscriber
from nntrain.learner import Learner
from nntrain.models import tabular_mlp
class KillS(Subscriber):
    order,n = 90,0
    def after_batch(self, learn):
        self.n += learn.training
        if self.n==int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)
dls = DataLoaders.from_csv(sys.argv[1], 'kind', 8, seed=0)
set_seed(1)
learn = Learner(tabular_mlp(**dls.preprocessor.sizes), dls, F.cross_entropy, torch.optim.Adam, .01)
learn.fit(4, subs=[CheckpointS(sys.argv[2], every=5), KillS()])
print([(r['mode'], r['loss'].hex()) for r in learn.history], [p.double().sum().item().hex() for p in learn.model.parameters()])
'''

@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_last_bit(tmp_path):
    frame().to_csv(tmp_path/'a.csv', index=False)
    def run(folder, at): return subprocess.run([sys.executable, '-c', script, tmp_path/'a.csv', tmp_path/folder, str(at)], capture_output=True, text=True, cwd=root, env=dict(os.environ, OMP_NUM_THREADS='1'))
    straight = run('a', 0)
    assert straight.returncode==0, straight.stderr
    assert run('b', 9).returncode==-signal.SIGKILL and any((tmp_path/'b').glob('*.pt'))
    resumed = run('b', 0)
    assert resumed.returncode==0, resumed.stderr
    assert resumed.stdout.splitlines()[-1]==straight.stdout.splitlines()[-1]

def test_check_has_nothing_against_the_numbers_of_categories():
    df = frame(2000).assign(place=[f'place {i%80:02}' for i in range(2000)])
    dls = DataLoaders.from_df(df, 'kind', 64, seed=0)
    set_seed(0)
    res = str(Learner(tabular_mlp(**dls.preprocessor.sizes), dls, F.cross_entropy, torch.optim.Adam, .01).check())
    assert "normalised" not in res, res
