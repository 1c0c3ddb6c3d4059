# The same image as `make image` writes, for those who build with docker; `make binary` first.
FROM scratch
COPY --chmod=755 dist/quorate /usr/local/bin/quorate
COPY --chmod=644 dist/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY dist/zoneinfo /usr/share/zoneinfo
COPY --chmod=644 LICENSE /usr/share/doc/quorate/LICENSE
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/quorate"]
