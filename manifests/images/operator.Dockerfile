# The image of candela-operator for those who build with Docker, Podman or Buildah. `cargo xtask image` stages the root
# (Debian's packages and our binary) and makes the same image without a container engine:
#   make images && buildah bud -f manifests/images/operator.Dockerfile target/images/stage/operator
FROM scratch
COPY rootfs/ /
ENV PATH=/usr/bin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 9090
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/usr/bin/candela-operator"]
