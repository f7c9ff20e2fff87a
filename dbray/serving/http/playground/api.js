// Talks to the server: JSON, pictures behind a key, and server-sent events of an answer to POST.

const KEY = "dbray-key"; // for this tab only

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message || `The server answered ${status}.`);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null));
  return response;
}

export const getJson = async (path) => (await call(path)).json();

const pictures = new Map(); // path -> promise of an object URL

export function picture(path) {
  if (!pictures.has(path)) {
    const loading = call(path).then((r) => r.blob()).then((blob) => URL.createObjectURL(blob));
    loading.catch(() => pictures.delete(path));
    pictures.set(path, loading);
  }
  return pictures.get(path);
}

// Calls onEvent(data) for every event; resolves with the response's headers when all are there.
export async function stream(body, onEvent, signal) {
  const response = await call("/v1/images/generations", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return response.headers;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const line = event.split("\n").find((text) => text.startsWith("data: "));
      if (!line) continue;
      const data = JSON.parse(line.slice(6));
      if (data.error) throw new ApiError(500, data);
      onEvent(data);
    }
  }
}
