//! HTTP answers: what is no success becomes a [`Refusal`], which keeps more of the answer than `object_store`'s own errors
//! do, and less of the body, since that may repeat keys and signatures.
use async_trait::async_trait;
use futures_util::StreamExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, Result};
use std::time::Duration;

/// Bytes of an error's body that are read.
const BODY: usize = 16 << 10;

/// An answer that is no success.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the server answers {status}")]
pub struct Refusal {
    /// Number and name of the status, such as `404 Not Found`, with the code that S3 and Google give for it.
    pub status: String,
    /// The status's number.
    pub number: u16,
    /// How long the server asks to wait.
    pub wait: Option<Duration>,
}

/// Makes clients whose refused reads fail with a [`Refusal`].
#[derive(Clone, Debug, Default)]
pub struct Connector {
    /// A client for all stores of this connector: one pool of connections.
    shared: Option<HttpClient>,
}

impl Connector {
    /// # Errors
    /// The options make no client.
    pub fn shared(options: &ClientOptions) -> Result<Self> {
        Ok(Self { shared: Some(ReqwestConnector::default().connect(options)?) })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let client = self.shared.clone().map_or_else(|| ReqwestConnector::default().connect(options), Ok)?;
        Ok(HttpClient::new(Answers(client)))
    }
}

#[derive(Debug)]
struct Answers(HttpClient);

#[async_trait]
impl HttpService for Answers {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Credentials are asked for by other methods, and what is refused there may be asked for in another way.
        let is_read = request.method().as_str() == "GET";
        let response = self.0.execute(request).await?;
        if response.status().is_success() || !is_read {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let wait = head.headers.get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let code = code_in(body).await.map_or_else(String::new, |code| format!(" ({code})"));
        let status = format!("{}{code}", head.status);
        let refusal = Refusal { status, number: head.status.as_u16(), wait: wait.map(Duration::from_secs) };
        Err(HttpError::new(HttpErrorKind::Unknown, refusal))
    }
}

/// The content of `<Code>` in the XML of an error, such as `NoSuchKey`.
async fn code_in(body: HttpResponseBody) -> Option<String> {
    let mut text = Vec::new();
    let mut parts = body.bytes_stream();
    while let Some(Ok(part)) = parts.next().await
        && text.len() < BODY
    {
        text.extend_from_slice(&part);
    }
    let text = String::from_utf8_lossy(&text);
    let code = text.split_once("<Code>")?.1.split_once("</Code>")?.0;
    let is_name = (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphabetic());
    is_name.then(|| code.to_owned())
}
