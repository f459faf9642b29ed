# The image of candela-server for those who build with Docker, Podman or Buildah. `cargo xtask image` stages the root
# (Debian's packages and our binary) and makes the same image without a container engine:
#   make images && buildah bud -f manifests/images/server.Dockerfile target/images/stage/server
FROM scratch
COPY rootfs/ /
ENV PATH=/usr/bin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 8080 9090
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/usr/bin/candela-server"]
