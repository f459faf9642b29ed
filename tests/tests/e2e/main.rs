//! Candela on a real node: the operator's and the server's own images, installed by `kubectl apply -k`, asked over a
//! Service. One cluster for all stories, one namespace for each; `CANDELA_PROVE=1` asks for the long variants.

#![expect(clippy::print_stdout, reason = "the figures of a run are read in its output")]

mod audit;
mod client;
mod load;
mod node;
mod served;
mod trust;
mod watch;

mod batching;
mod chat;
mod children;
mod deleted;
mod failures;
mod full_gpus;
mod killed;
mod rest;
mod rollout;
mod samples;
mod several_models;
mod wedged;
