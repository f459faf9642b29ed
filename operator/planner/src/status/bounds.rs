//! The bounds of the CRD, held by every status: what comes from nodes, pods, the API server and the servers themselves
//! has bounds of its own or none, and one text that is too long makes the API server refuse the whole status.

use std::collections::BTreeSet;

use candela_crds::{Condition, LlmDeploymentStatus, ModelFacts, PlacementStatus, Revision, StartupSeconds};

/// The status with every text and list within the bounds of the CRD, no key of a list twice, and every number finite.
pub(super) fn hold(mut status: LlmDeploymentStatus) -> LlmDeploymentStatus {
    status.conditions.truncate(16);
    for Condition { message, .. } in &mut status.conditions {
        shorten(message, 4096);
    }
    for text in status.url.iter_mut().chain(status.addresses.iter_mut().map(|address| &mut address.url)) {
        shorten(text, 256);
    }
    for (text, max) in
        [(&mut status.selector, 512), (&mut status.current_revision, 128), (&mut status.target_revision, 128)]
    {
        shorten_option(text, max);
    }
    for Revision { name, model_digest, image, .. } in &mut status.revisions {
        shorten(name, 128);
        shorten_option(model_digest, 128);
        shorten_option(image, 512);
    }
    status.revisions.truncate(8);
    once(&mut status.revisions, |revision| &revision.name);
    for model in &mut status.models {
        let ModelFacts { served_name, digest, architecture, quantization, tasks, revision, .. } = model;
        for text in [served_name, digest, architecture] {
            shorten(text, 128);
        }
        shorten(quantization, 64);
        tasks.iter_mut().for_each(|task| shorten(task, 64));
        tasks.truncate(8);
        shorten_option(revision, 128);
    }
    status.models.truncate(16);
    once(&mut status.models, |model| &model.served_name);
    if let Some(StartupSeconds { schedule, image_pull, fetch, load, warmup, first_token }) =
        &mut status.startup
    {
        // JSON knows no infinity: it would be written as null, which the schema refuses.
        for seconds in [schedule, image_pull, fetch, load, warmup, first_token] {
            *seconds = seconds.filter(|seconds| seconds.is_finite());
        }
    }
    if let Some(PlacementStatus { resource, nearest_fit }) = &mut status.placement {
        shorten_option(resource, 512);
        shorten_option(nearest_fit, 512);
    }
    status.failures.truncate(5);
    for failure in &mut status.failures {
        shorten(&mut failure.message, 2048);
        shorten_option(&mut failure.pod, 253);
        shorten_option(&mut failure.container, 63);
    }
    status
}

fn shorten(text: &mut String, max: usize) {
    if text.len() > max {
        *text = cut(text, max);
    }
}

fn shorten_option(text: &mut Option<String>, max: usize) {
    if let Some(text) = text {
        shorten(text, max);
    }
}

/// Keeps the first of those with one key.
fn once<T>(list: &mut Vec<T>, key: impl Fn(&T) -> &String) {
    let mut known = BTreeSet::new();
    list.retain(|item| known.insert(key(item).clone()));
}

/// At most `max` bytes, cut at a character. The schema counts characters, of which there are never more.
pub(super) fn cut(text: &str, max: usize) -> String {
    const MARK: char = '…';
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max.saturating_sub(MARK.len_utf8())).rev().find(|&end| text.is_char_boundary(end));
    format!("{}{MARK}", &text[..end.unwrap_or(0)])
}
