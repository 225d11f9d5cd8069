//! Export of spans to a collector, with the OpenTelemetry protocol over HTTP.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::cli::output::warn;

/// Maximum duration of an export.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum duration of the last export. The process ends a few seconds after a signal.
const STOP_TIMEOUT: Duration = Duration::from_millis(300);
/// The name of the service in the spans.
const NAME: &str = "enjambre";
/// The path at the endpoint of a collector that receives spans.
const PATH: &str = "v1/traces";

/// Sends requests in the runtime, while the exporter waits in its own thread.
#[derive(Debug)]
struct Client {
    http: HyperClient,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        self.runtime.spawn(async move { http.send_bytes(request).await }).await?
    }
}

/// The exporter of the process.
#[derive(Debug)]
pub(crate) struct SpanExport(SdkTracerProvider);

impl SpanExport {
    /// Starts the export to a collector, such as `http://127.0.0.1:4318`, unless the endpoint is empty. The layer passes the
    /// spans on. Those that the collector does not receive in time are dropped.
    pub(crate) fn start<S>(endpoint: &str) -> Option<(Self, impl Layer<S> + use<S>)>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        if endpoint.is_empty() {
            return None;
        }
        let http = HyperClient::with_default_connector(TIMEOUT, None);
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client { http, runtime: Handle::current() })
            .with_endpoint(format!("{}/{PATH}", endpoint.trim_end_matches('/')))
            .with_timeout(TIMEOUT)
            .build();
        let exporter =
            exporter.inspect_err(|error| warn(&format!("spans are not exported: {error}"))).ok()?;
        let resource = Resource::builder().with_service_name(NAME).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(NAME));
        Some((Self(provider), layer))
    }

    /// Sends the last spans.
    pub(crate) async fn stop(&self) {
        let provider = self.0.clone();
        // Blocks until the thread of the exporter has ended.
        let _ = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(STOP_TIMEOUT)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Receives one request and returns it.
    async fn receive(listener: TcpListener) -> Vec<u8> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        loop {
            stream.read_buf(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request);
            let Some((header, _)) = text.split_once("\r\n\r\n") else { continue };
            let length = header.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if request.len() >= header.len() + 4 + length.parse::<usize>().unwrap() {
                break;
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        request
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn collector_receives_spans_with_their_fields() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let collector = tokio::spawn(receive(listener));
        let (export, layer) = SpanExport::start(&endpoint).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info_span!("download", id = "0123abcd").in_scope(|| tracing::info!("file verified"));
        });
        export.stop().await;
        let request = collector.await.unwrap();
        let contains = |text: &str| request.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(request.starts_with(b"POST /v1/traces HTTP/1.1\r\n"));
        for text in ["application/x-protobuf", "enjambre", "download", "0123abcd", "file verified"] {
            assert!(contains(text), "{text} is missing");
        }
    }
}
