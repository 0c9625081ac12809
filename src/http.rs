//! HTTP without sockets: requests, answers, errors, and how their bytes are read. Pure.

pub mod bad_request;
pub mod body;
pub mod chunked;
pub mod content;
pub mod failure;
pub mod fields;
pub mod framing;
pub mod head;
pub mod problem;
pub mod reference;
pub mod sending;
pub mod types;

pub use body::{Body, Chunk, Source};
pub use failure::Failure;
pub use fields::header_map;
pub use problem::Problem;
pub use types::{Request, RequestId, Response, Unanswered, X_REQUEST_ID, client_gone, has_body};
