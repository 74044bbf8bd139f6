# Rekontext as a container: docs/operating/install.md says how it is built, run and kept. Two targets: `engine`, the
# default, has everything; `service` is a front without torch. Needs BuildKit, or podman. What pip must know of other
# indexes comes as the secret `pip`, a pip.conf, of which nothing stays. Another BASE is a Debian with Python 3.11 or
# newer, its venv module and its headers.
ARG BASE=python:3.12-slim-bookworm

# Copied by what is in them, so that only other requirements have them installed anew.
FROM ${BASE} AS requirements
WORKDIR /requirements
COPY pyproject.toml .
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
open('service.txt', 'w').write('\n'.join(project['dependencies'] + extras['redis'])); \
open('engine.txt', 'w').write('\n'.join(extras['engine']))" && rm pyproject.toml

FROM ${BASE} AS packages
WORKDIR /requirements
COPY constraints.txt .
COPY --from=requirements /requirements .
RUN python3 -m venv /opt/rekontext

FROM packages AS own
WORKDIR /clone
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/rekontext/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . \
    && /opt/rekontext/bin/pip install --no-cache-dir --no-index --no-deps --root /own /wheel/*.whl

FROM packages AS service-packages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/rekontext/bin/pip install --no-cache-dir -c constraints.txt -r service.txt

FROM packages AS engine-packages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/rekontext/bin/pip install --no-cache-dir -c constraints.txt torch==2.13.0 -r service.txt -r engine.txt

FROM ${BASE} AS runtime
# A user by number, so that others can tell that it isn't root. /data is to be kept; /cache, its home, holds what the hub
# and the compiler would fetch and make again.
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin rekontext \
    && install --directory --owner=10001 --group=10001 --mode=700 /data /cache
ENV PATH=/opt/rekontext/bin:$PATH \
    HOME=/cache \
    REKONTEXT_DATA_DIR=/data \
    REKONTEXT_HOST=0.0.0.0 \
    REKONTEXT_PORT=8000
WORKDIR /data
VOLUME ["/data", "/cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# Is it alive, not is it ready: a model may take an hour to come, and a new start doesn't bring a database back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "import http.client, os, sys; \
call = http.client.HTTPConnection('127.0.0.1', int(os.environ['REKONTEXT_PORT']), timeout=4); \
call.request('GET', '/healthz'); sys.exit(call.getresponse().status != 200)"]
# The kernel keeps signals from a container's first process until that has handlers for them, which takes a second of
# imports: a stop within it would wait for the kill.
ENTRYPOINT ["tini", "--", "rekontext"]
CMD ["serve"]

FROM runtime AS service
COPY --from=service-packages /opt/rekontext /opt/rekontext
COPY --from=own /own /
ENV REKONTEXT_DEVICE=none
USER 10001:10001

FROM runtime AS engine
# For our own kernels: Triton compiles them where they run.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && test -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
    || { echo "the base image has no gcc to be had, or none of Python's headers" >&2; exit 1; }
COPY --from=engine-packages /opt/rekontext /opt/rekontext
COPY --from=own /own /
USER 10001:10001
