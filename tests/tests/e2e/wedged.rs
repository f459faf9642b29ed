//! A step that never ends, on a real node: the engine's thread of one replica is stopped in the midst of its work, while
//! the rest of the process goes on. The pod loses its traffic, its container is restarted, the other replica answers
//! all along.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use candela_wire::health::{NOT_READY_WITHIN_SECS, RESTARTED_WITHIN_SECS};
use nix::{
    sys::{
        ptrace,
        wait::{self, WaitPidFlag},
    },
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    chat,
    client::{self, Connections, Once},
    killed, node,
    node::{READY, Story, prove},
};

/// Of the first engine of its process, as much as the kernel keeps of a name.
const ENGINE_THREAD: &str = "candela-1-engin";
/// What a machine that does other things as well may add to what is promised.
const BUSY: Duration = Duration::from_secs(5);
/// Between two looks of the holder at its thread.
const LOOK: Duration = Duration::from_millis(20);

fn within(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into()) + if prove() { Duration::ZERO } else { BUSY }
}

/// A thread of another process that stands still until this is dropped, as a debugger would hold it.
struct Held {
    release: Option<mpsc::Sender<()>>,
    holder: Option<thread::JoinHandle<()>>,
}

impl Held {
    fn hold(tid: i32) -> Result<Self> {
        let (release, released) = mpsc::channel::<()>();
        let (report, reported) = mpsc::channel();
        // One thread does it all: the kernel knows a tracer by its thread, and lets go when that ends.
        let holder = thread::spawn(move || {
            let tid = Pid::from_raw(tid);
            let stopped = ptrace::seize(tid, ptrace::Options::empty()).and_then(|()| ptrace::interrupt(tid));
            let _ = report.send(stopped);
            // When it is killed, its process is not gone before its tracer has heard of it.
            while released.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let _ = wait::waitpid(tid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
            }
        });
        reported.recv()?.context("the engine's thread cannot be stopped")?;
        Ok(Self { release: Some(release), holder: Some(holder) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

/// The thread of that name in the container.
fn thread_of(container: &str, name: &str) -> Result<i32> {
    for pid in killed::processes(&[container])? {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            if fs::read_to_string(task.path().join("comm"))?.trim_end() == name {
                return Ok(task.file_name().to_string_lossy().parse()?);
            }
        }
    }
    bail!("container {container} has no thread `{name}`")
}

fn ready(pod: &Value) -> bool {
    let all = pod["status"]["conditions"].as_array();
    all.is_some_and(|all| all.iter().any(|found| found["type"] == "Ready" && found["status"] == "True"))
}

/// Chats until told to stop, so that the replica has work when it gets stuck.
async fn keep_asking(once: Once, body: Value, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        // What the stuck replica has taken is lost.
        let _ = once.chat(&body).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_engine_loses_its_traffic_and_is_restarted() -> Result<()> {
    let story = Story::alone("wedged").await?;
    story.apply(&chat::demo("stuck")).await?;
    story.model_until(0, "stuck", "Ready", READY, node::settled).await?;
    let (cluster, service) = (story.cluster.clone(), format!("{}/stuck:http", story.namespace));
    let url = tokio::task::spawn_blocking(move || cluster.forward(&service)).await??;
    let once = Once::new(&url, Connections::NewEach);
    once.until_reachable().await?;
    let mut body = chat::body(false);
    body["model"] = json!("stuck");

    let pods = story.pods.present();
    let [victim, other] = pods.as_slice() else { bail!("{} pods", pods.len()) };
    let (victim, other) = (victim.name().to_owned(), other.name().to_owned());
    let container = killed::container_id(&pods[0].object).context("a container that is ready")?.to_owned();
    let engine = tokio::task::spawn_blocking(move || thread_of(&container, ENGINE_THREAD)).await??;

    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> =
        (0..4).map(|_| tokio::spawn(keep_asking(once.clone(), body.clone(), Arc::clone(&stop)))).collect();
    let mark = story.pods.mark();
    let stuck = Instant::now();
    let held = Held::hold(engine)?;

    let not_ready = story
        .pods
        .until(mark, "not ready", within(NOT_READY_WITHIN_SECS), |pod| {
            pod.name() == victim && !ready(&pod.object)
        })
        .await?;
    let restarted = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        container["restartCount"].as_u64() > Some(0) && ready(pod)
    };
    let again = story
        .pods
        .until(mark, "restarted", within(RESTARTED_WITHIN_SECS), |pod| {
            pod.name() == victim && restarted(&pod.object)
        })
        .await?;
    stop.store(true, Ordering::Relaxed);
    for asked in asking {
        asked.abort();
    }
    drop(held);
    println!(
        "an engine's thread stopped: not ready after {:.1} s, restarted and ready after {:.1} s",
        (not_ready.at - stuck).as_secs_f64(),
        (again.at - stuck).as_secs_f64()
    );
    let alarms = story.pods.since(mark).into_iter().filter(|pod| pod.name() == other && !ready(&pod.object));
    ensure!(alarms.count() == 0, "the replica that was not stuck lost its traffic as well");
    let message = &again.object["status"]["containerStatuses"][0]["lastState"]["terminated"];
    println!("how the container ended: {message}");
    for _ in 0..8 {
        ensure!(client::whole_text(&once.chat(&body).await?)?.contains("Paris"), "another answer");
    }
    Ok(())
}
