//! A whole operator: watches, lease, internal listener, workers, and the order in which they start and end.

use std::{net::SocketAddr, sync::Arc};

use candela_planner::Settings;
use kube::Client;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    admin::{self, Admin, ListenError},
    backoff::Retry,
    cache::Key,
    client::{CallPolicy, Limiter, is_fenced, with_policy},
    cluster_keys,
    config::OperatorConfig,
    context::Context,
    error::{Chain, Error},
    lease::{Elector, LeaseError},
    metrics::{Metrics, OutcomeLabels},
    permit::{self, WritePermit},
    planted::{Planted, PlantedBug},
    pull::{self, Puller},
    queue::Priority,
    reconcile,
};

/// How long passes that have begun may go on after the process is told to end.
const DRAIN: Duration = Duration::from_secs(10);

/// How `lead` ends when every worker has finished its pass, and when it never led.
const WORKERS: &str = "workers";
const STANDBY: &str = "standby";

/// What an operator runs with. Everything that touches the outside is a parameter, so that tests can replace it.
pub struct RunOptions {
    /// Without policy: [`run`] adds deadlines, bounds and the fence.
    pub client: Client,
    pub config: OperatorConfig,
    /// Unique per process.
    pub identity: String,
    /// Where the Lease is, and from where pods accept the pull.
    pub operator_namespace: String,
    /// Only resources of this namespace; `None` = all.
    pub watch_namespace: Option<String>,
    /// `None` = no internal listener.
    pub internal_listen: Option<SocketAddr>,
    /// `None` = over HTTP.
    pub puller: Option<Puller>,
    pub planted: Planted,
    /// Cancelled = end in good order.
    pub shutdown: CancellationToken,
}

impl RunOptions {
    pub fn new(client: Client, config: OperatorConfig, identity: impl Into<String>) -> Self {
        Self {
            client,
            config,
            identity: identity.into(),
            operator_namespace: "candela-system".to_owned(),
            watch_namespace: None,
            internal_listen: None,
            puller: None,
            planted: Planted::default(),
            shutdown: CancellationToken::new(),
        }
    }
}

/// Why an operator ended without being told to; the process must exit non-zero.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("lost the leadership")]
    Lease(#[source] LeaseError),
    #[error("the task `{task}` ended")]
    TaskEnded { task: String },
}

/// Runs until told to end, or until something is lost that cannot be got back within the process.
pub async fn run(options: RunOptions) -> Result<(), RunError> {
    let RunOptions { client, config, identity, operator_namespace, watch_namespace, .. } = options;
    let metrics = Metrics::new();
    let (holder, permit) = permit::permit();
    let limits = &config.concurrency;
    let fence = if options.planted.has(PlantedBug::WriteAfterLeaseExpiry) {
        WritePermit::always()
    } else {
        permit.clone()
    };
    let policy = CallPolicy {
        timeouts: config.client_timeouts.clone(),
        limiter: Some(Limiter::new(limits.calls, limits.calls_per_second, limits.call_burst)),
        permit: fence,
        metrics: Arc::clone(&metrics),
    };
    let lease_policy = CallPolicy { limiter: None, permit: WritePermit::always(), ..policy.clone() };
    let settings: Settings = config.settings(&operator_namespace);
    let pull = options.puller.unwrap_or_else(|| pull::over_http(config.client_timeouts.status_pull.into()));
    let ctx = Context::new(
        with_policy(client.clone(), policy),
        settings,
        Arc::clone(&metrics),
        &identity,
        pull,
        options.planted,
    );
    let (mut elector, _) = Elector::new(
        with_policy(client, lease_policy),
        &operator_namespace,
        config.lease.clone(),
        identity,
        holder,
        metrics,
    );

    let mut tasks = JoinSet::new();
    let (draining, draining_seen) = watch::channel(false);
    if let Some(address) = options.internal_listen {
        let listener = admin::bind(address).await?;
        let admin = Admin { ctx: Arc::clone(&ctx), draining: draining_seen };
        tasks.spawn(async move {
            if let Err(error) = admin::serve(listener, admin).await {
                error!(error = %Chain(&error), "the internal listener failed");
            }
            "internal listener"
        });
    }
    crate::watches::spawn(&ctx, watch_namespace.as_deref(), &mut tasks);

    let stop = CancellationToken::new();
    let (ended, finished) = {
        let mut election = std::pin::pin!(elector.run());
        let mut work = std::pin::pin!(lead(Arc::clone(&ctx), config, permit, stop.clone()));
        let ended = tokio::select! {
            lost = &mut election => match lost {
                Err(_) if options.planted.has(PlantedBug::WriteAfterLeaseExpiry) => {
                    tokio::select! {
                        task = &mut work => Err(RunError::TaskEnded { task }),
                        () = options.shutdown.cancelled() => Ok(()),
                    }
                }
                Err(error) => Err(RunError::Lease(error)),
                Ok(()) => Err(RunError::TaskEnded { task: "lease".to_owned() }),
            },
            task = &mut work => Err(RunError::TaskEnded { task }),
            task = tasks.join_next() => {
                let task = match task {
                    Some(Ok(kind)) => kind.to_owned(),
                    Some(Err(panic)) => panic.to_string(),
                    None => "watches".to_owned(),
                };
                Err(RunError::TaskEnded { task })
            }
            () = options.shutdown.cancelled() => Ok(()),
        };
        let mut finished = false;
        if ended.is_ok() {
            info!("shutting down: finishing what has begun");
            draining.send_replace(true);
            stop.cancel();
            // The lease is renewed meanwhile, so that the last writes are covered too.
            tokio::select! {
                // Any other end of it drops passes that had begun.
                task = &mut work => finished = matches!(task.as_str(), WORKERS | STANDBY),
                _ = &mut election => {}
                () = tokio::time::sleep(DRAIN) => warn!("some passes did not finish in time"),
            }
        }
        // Dropping `work` aborts what is left of it, but not what the API server has already been sent.
        (ended, finished)
    };
    // A lease given up lets another replica write at once; a write of ours that may still arrive must find it held.
    if finished {
        elector.release().await;
    }
    ended
}

/// What only the leader does. Ends when told to, with what ended first.
async fn lead(
    ctx: Arc<Context>,
    config: OperatorConfig,
    mut permit: WritePermit,
    stop: CancellationToken,
) -> String {
    let mut workers = JoinSet::new();
    let begin = async {
        permit.granted().await;
        // An empty cache looks like "everything is gone". The keys are not waited for longer than one call takes: a
        // first pass without them only means a second one.
        tokio::join!(ctx.caches.wait_until_synced(), cluster_keys::look(&ctx));
    };
    tokio::select! {
        () = begin => {}
        () = stop.cancelled() => return STANDBY.to_owned(),
    }
    info!(resources = ctx.caches.resources.len(), "every cache is filled, starting to work");
    for resource in ctx.caches.resources.all() {
        ctx.queue.add(Key::of(&resource.meta), Priority::Sweep);
    }
    for _ in 0..config.concurrency.passes {
        workers.spawn(work(Arc::clone(&ctx), stop.clone()));
    }
    let mut keys = JoinSet::new();
    keys.spawn(cluster_keys::follow(Arc::clone(&ctx)));
    let mut pullers = JoinSet::new();
    for _ in 0..config.concurrency.status_pulls {
        pullers.spawn(pull::worker(Arc::clone(&ctx)));
    }
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(Ok(())) => {}
                Some(Err(panic)) => return panic.to_string(),
                None => return WORKERS.to_owned(),
            },
            Some(ended) = keys.join_next() => {
                return ended.err().map_or_else(|| "cluster keys".to_owned(), |panic| panic.to_string());
            }
            Some(ended) = pullers.join_next() => {
                return ended.err().map_or_else(|| "status pull".to_owned(), |panic| panic.to_string());
            }
        }
    }
}

async fn work(ctx: Arc<Context>, stop: CancellationToken) {
    loop {
        let key = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            key = ctx.queue.next() => key,
        };
        work_on(&ctx, &key).await;
        ctx.queue.done(&key);
    }
}

/// One pass and what follows from how it ended.
pub(crate) async fn work_on(ctx: &Context, key: &Key) {
    let began = Instant::now();
    let result = reconcile::isolated_pass(ctx, key).await;
    ctx.metrics.pass_seconds.observe(began.elapsed().as_secs_f64());
    let outcome = match &result {
        Ok(_) => "ok",
        Err(error) => error.class(),
    };
    ctx.metrics.passes.get_or_create(&OutcomeLabels { outcome }).inc();
    match result {
        Ok(outcome) => {
            ctx.backoff.reset(key);
            if let Some(delay) = outcome.again_after {
                ctx.queue.add_at(key.clone(), Instant::now() + delay);
            }
        }
        Err(Error::Call { source, .. }) if is_fenced(&source) => {
            // The lease has ended and the process follows, unless a renewal was answered in the last moment.
            ctx.queue.add_at(key.clone(), Instant::now() + Duration::from_secs(1));
        }
        Err(error) => {
            let delay = ctx.backoff.after_failure(key.clone(), error.retry(), error.retry_after());
            match error.retry() {
                Retry::Soon => {
                    tracing::debug!(resource = %key, error = %Chain(&error), "pass met a conflict")
                }
                _ => warn!(resource = %key, error = %Chain(&error), retry_after = ?delay, "pass failed"),
            }
            if let Some(delay) = delay {
                ctx.queue.add_at(key.clone(), Instant::now() + delay);
            }
        }
    }
}
