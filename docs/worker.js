/* A browser starts no worker from a page that was opened as a file. This runs the worker's script in a
   hidden frame instead, so that the search works without a server and without a network. */
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.inner = new Promise(ready => {
        document.addEventListener("DOMContentLoaded", () => attach());
        if (document.readyState !== "loading") attach();
        function attach() {
          if (!frame.parentNode) document.body.append(frame), ready(frame.contentWindow);
        }
      }).then(inner => {
        inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}));
        inner.importScripts = (...urls) => Promise.all(urls.map(each => this.load(inner, each)));
        return this.load(inner, url).then(() => inner);
      });
    }
    load(inner, url) {
      return new Promise(loaded => {
        const script = inner.document.createElement("script");
        script.src = url;
        script.onload = loaded;
        inner.document.body.append(script);
      });
    }
    postMessage(data) {
      this.inner.then(inner => inner.dispatchEvent(new MessageEvent("message", {data})));
    }
    terminate() {}
  };
