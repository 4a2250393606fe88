# Everything that needs no GPU, and everything that does, in one image:
#
#   CPU   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t agci .
#         docker run --rm -v "$PWD:/data" agci demo
#   CUDA  docker build -t agci .                          PyPI's torch for Linux brings CUDA: about 3 GB
#         docker run --rm --gpus all -v "$PWD:/data" -v "$HOME/.cache/huggingface:/cache" agci probe --model ...
#
# The current folder is /data inside, where all output goes; --user "$(id -u):$(id -g)" makes it yours.
FROM python:3.12-slim

ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# torch first: its layer is the large one and changes least. An extra index: that of torch's CPU builds has not every
# version of torch's own requirements that constraints.txt names; of torch the build +cpu counts as the newer one
COPY constraints.txt /opt/agci/
RUN pip install --constraint /opt/agci/constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision

COPY pyproject.toml hatch_build.py README.md LICENSE CITATION.cff CHANGELOG.md /opt/agci/
COPY configs /opt/agci/configs
COPY transformers_agci /opt/agci/transformers_agci
RUN pip install --constraint /opt/agci/constraints.txt '/opt/agci[eval]'

# one thread per process (two are slower as soon as anything else runs); caches that any user may write
ENV OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HOME=/cache MPLCONFIGDIR=/tmp/matplotlib
RUN mkdir -m 777 /cache /data
WORKDIR /data
ENTRYPOINT ["agci"]
CMD ["--help"]
