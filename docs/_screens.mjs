// Takes pictures of pages in a running Chromium, by its DevTools protocol: node _screens.mjs PORT JSON, where the JSON is a
// list of {url, width, height, file, ready, act, until}: `act` is run in the page once `ready` is true, and the picture is
// taken once `until` is.
import { writeFileSync } from "node:fs";

const [port, list] = process.argv.slice(2);

for (const { url, width, height, file, ready, act, until } of JSON.parse(list)) {
  const opened = await fetch(`http://127.0.0.1:${port}/json/new?about:blank`, { method: "PUT" });
  const socket = new WebSocket((await opened.json()).webSocketDebuggerUrl);
  await new Promise((ready) => socket.addEventListener("open", ready, { once: true }));
  const waiting = new Map();
  let number = 0;
  socket.addEventListener("message", ({ data }) => {
    const answer = JSON.parse(data);
    waiting.get(answer.id)?.(answer.result);
  });
  const send = (method, params = {}) => new Promise((answered) => {
    waiting.set(++number, answered);
    socket.send(JSON.stringify({ id: number, method, params }));
  });
  const value = async (expression) => (await send("Runtime.evaluate", { expression })).result.value;
  const wait = async (expression) => {
    for (let tries = 0; !(await value(expression)); tries++) {
      if (tries > 600) throw new Error(`${url}: never ${expression}`);
      await new Promise((later) => setTimeout(later, 100));
    }
  };
  await send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
  await send("Page.navigate", { url });
  await wait("location.href !== 'about:blank' && document.readyState === 'complete'");
  if (ready) await wait(ready);
  if (act) await value(act);
  if (until) await wait(until);
  const { data } = await send("Page.captureScreenshot", { format: "png" });
  writeFileSync(file, Buffer.from(data, "base64"));
  socket.close();
}
