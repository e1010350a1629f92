FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.stamp=$VERSION" -o /out/clockbridge ./cmd/clockbridge
# A new volume belongs to whoever owns the directory under it.
RUN mkdir /out/data && chown 65532:65532 /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/clockbridge /usr/bin/clockbridge
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
# Nothing but the volume needs to be writable. Instances share it, each with a directory of its own.
ENV CLOCKBRIDGE_DATA_DIR=/data/%d CLOCKBRIDGE_HTTP_ADDR=:8080 TMPDIR=/data
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s --retries=3 CMD ["clockbridge", "status", "--health"]
ENTRYPOINT ["clockbridge"]
CMD ["run"]
