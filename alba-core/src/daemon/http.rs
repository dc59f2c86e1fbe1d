//! The HTTP end points every daemon has: metrics, health, configuration. For operators and their tools only.
//!
//! Few connections are served at once and each only for a while, so that idle or slow clients hold nothing for long.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Polling, Poll};
use std::time::Duration;

use anyhow::Context as _;
use axum::Json;
use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Health, Pages};
use crate::config;
use crate::env::clock::Clock;
use crate::env::spawn::AbortOnDrop;
use crate::env::{Env, Listener, Stream};

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// Longest life of a connection. Scrapes take milliseconds.
const LIFETIME: Duration = Duration::from_secs(60);

/// How often the histograms are folded, so that they stay small without a scrape.
const UPKEEP: Duration = Duration::from_secs(5);

/// Bucket limits in seconds for everything named `*_seconds`: a local read takes some 0.1 ms, a deadline some 20 s.
const SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0];

/// The server's tasks; they end when this is dropped.
pub(super) struct Http {
    _tasks: Vec<AbortOnDrop>,
}

/// Listens at `at` and serves until dropped.
pub(super) async fn start<C: Serialize>(
    env: &Env,
    at: SocketAddr,
    config: &C,
    health: Health,
    pages: Pages,
) -> anyhow::Result<Http> {
    let listener =
        env.net.listen(at).await.context("metrics_listen: give another address there, or stop who has it")?;
    let mut tasks = Vec::new();
    let metrics = recorder()?;
    let upkeep = (metrics.clone(), env.clock.clone());
    let shown = Arc::new(serde_json::to_value(config::masked(config)?)?);
    let app = Router::new()
        .route("/metrics", get(async move || metrics.render()))
        .route("/health/live", get(async || Json(serde_json::json!({ "live": true }))))
        .route("/health/ready", get(async move || ready(&health)))
        .route("/config", get(async move || Json(shown.as_ref().clone())))
        .fallback(get(async move |uri: Uri| match pages.show(uri.path()) {
            Some(page) => Json(page).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }));
    let accept =
        Accept { listener, clock: env.clock.clone(), permits: Arc::new(Semaphore::new(CONNECTIONS)) };
    let serve = async move {
        if let Err(error) = axum::serve(accept, app).await {
            tracing::error!(%error, "metrics server ended");
        }
    };
    tasks.push(env.spawn.spawn("metrics", Box::pin(serve)).abort_on_drop());
    let fold = async move {
        let (metrics, clock) = upkeep;
        loop {
            clock.sleep_until(clock.now().plus(UPKEEP)).await;
            metrics.run_upkeep();
        }
    };
    tasks.push(env.spawn.spawn("metrics upkeep", Box::pin(fold)).abort_on_drop());
    Ok(Http { _tasks: tasks })
}

fn recorder() -> anyhow::Result<PrometheusHandle> {
    let builder =
        PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        // A second daemon in one process (tests): the first one's recorder gets everything.
        tracing::warn!("this process has a metrics recorder already; this daemon's page stays empty");
    }
    Ok(handle)
}

fn ready(health: &Health) -> impl IntoResponse + use<> {
    let readiness = health.get();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

/// axum's view of our listener.
struct Accept {
    listener: Box<dyn Listener>,
    clock: Arc<dyn Clock>,
    permits: Arc<Semaphore>,
}

impl axum::serve::Listener for Accept {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // Never closed, so this always gives a permit.
            let Ok(permit) = self.permits.clone().acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let clock = self.clock.clone();
                    let end = Box::pin(async move { clock.sleep_until(clock.now().plus(LIFETIME)).await });
                    return (Connection { stream, end, _permit: permit }, peer);
                }
                Err(error) => {
                    // Out of file descriptors, mostly: others will be closed soon.
                    tracing::warn!(%error, "metrics server cannot accept");
                    self.clock.sleep_until(self.clock.now().plus(Duration::from_millis(100))).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with an end.
struct Connection {
    stream: Stream,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn ended(&mut self, polling: &mut Polling<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(polling) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        polling: &mut Polling<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(polling, buffer) {
            // A finished timer must not be polled again: only who would wait looks at it, and then gives up.
            Poll::Pending => match self.ended(polling) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            ready => ready,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        polling: &mut Polling<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(polling, bytes) {
            Poll::Pending => match self.ended(polling) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            ready => ready,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, polling: &mut Polling<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(polling)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, polling: &mut Polling<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(polling)
    }
}
