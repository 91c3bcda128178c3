"Everything is read from settings.ini, the single source of name, version and requirements."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

statuses = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}
pythons = [f'3.{minor}' for minor in range(int(cfg['min_python'].split('.')[1]), 15)]
readme = here/'README.md'

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Changelog': cfg['git_url'] + '/blob/main/CHANGELOG.md',
                  'Source': cfg['git_url'], 'Issues': cfg['git_url'] + '/issues'},
    license='Apache-2.0', license_files=['LICENSE'], keywords=cfg['keywords'],
    classifiers=[f'Development Status :: {statuses[cfg["status"]]}', f'Intended Audience :: {cfg["audience"]}',
                 f'Natural Language :: {cfg["language"]}', 'Framework :: Jupyter',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Programming Language :: Python :: 3',
                 *(f'Programming Language :: Python :: {v}' for v in pythons)],
    packages=find_packages(include=['nntrain', 'nntrain.*']), include_package_data=True, zip_safe=False,
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split(), 'digits': [o for o in cfg['dev_requirements'].split() if o.startswith('scikit-learn')]},
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d']},
)
