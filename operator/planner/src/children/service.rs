//! The address of the API. The internal listener is not part of it: probes and the operator go to the pods.

use candela_wire::config::HTTP_PORT;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{OwnedKind, Resolved, names};

pub(super) fn service(resolved: &Resolved) -> Service {
    Service {
        metadata: super::metadata(resolved, OwnedKind::Service),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(names::selector(&resolved.name)),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: 80,
                target_port: Some(IntOrString::Int(i32::from(HTTP_PORT))),
                protocol: Some("TCP".to_owned()),
                app_protocol: Some("http".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
