"""Package metadata and dependencies; the tools' settings are in pyproject.toml."""
from pathlib import Path

from setuptools import find_packages, setup

# jaxlib 0.10.2 and 0.11 or newer compute some CPU reductions wrong without a flag that
# medrobust_jax.core.numerics sets; its canary stops a program on any version that still does.
REQUIRED = [
    'absl-py>=2.1',
    'array_record>=0.8; sys_platform == "linux"',
    'flatbuffers>=24.3',  # needed by jax.export to serialize, which does not declare it
    'flax>=0.12',
    'grain>=0.2.18',
    'importlib_resources>=6',  # needed by tensorflow-datasets, which does not declare it
    'jax>=0.10.1',
    'matplotlib>=3.9',
    'ml-collections>=1.1',
    'nibabel>=5.2',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12',
    'pillow>=10',
    'pycocotools>=2.0.8',
    'pydicom>=3',
    'scikit-learn>=1.5',
    'scipy>=1.13',
    'tensorboardX>=2.6',
    'tensorflow-datasets>=4.9.10',
    'tqdm>=4.66',
]
EXTRAS = {
    'test': ['jaxtyping>=0.3', 'nbclient>=0.10', 'nbformat>=5.10', 'ipykernel>=6.29', 'pyright>=1.1.400',
             'pytest>=8', 'pytest-xdist>=3.6', 'ruff>=0.8'],
    'notebooks': ['ipykernel>=6.29', 'jupyterlab>=4'],
    'gpu': ['jax[cuda12]>=0.10.1'],
    'tpu': ['jax[tpu]>=0.10.1'],
    'torch': ['torch>=2.4'],
    'peers': ['torch==2.13.0', 'adversarial-robustness-toolbox>=1.18', 'foolbox>=3.3', 'packaging'],
}

setup(
    name='medrobust_jax',
    version='0.1.0',
    description='Adversarial robustness of medical-image models in JAX: attacks, defenses, evaluation',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['medrobust_jax*', 'experiments*', 'configs*']),
    python_requires='>=3.11',
    install_requires=REQUIRED,
    extras_require=EXTRAS,
)
