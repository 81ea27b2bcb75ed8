# Build:  docker build -t jackfield .
# Begin:  mkdir config && sudo chown 10001 config && docker run --rm -v "$PWD/config:/config" jackfield init /config
#         and in config/config.yaml `host: 0.0.0.0`: the container's own loopback cannot be reached from outside
# Run:    docker run --init -p 127.0.0.1:8317:8317 -v "$PWD/config:/config" jackfield
# `--init`: the proxy reaps its own children; an init process reaps what those leave behind.
FROM python:3.11-slim AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir --prefix=/install '.[redis]'

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 jackfield
COPY --from=build /install /usr/local
USER jackfield
WORKDIR /config
VOLUME /config
EXPOSE 8317
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", \
  "import urllib.request as u; u.urlopen('http://127.0.0.1:8317/readyz', timeout=2)"]
ENTRYPOINT ["jackfield"]
CMD ["serve", "--config", "/config/config.yaml"]
