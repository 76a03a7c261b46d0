// Browsers start no worker from a file. The site's search runs in one; opened as files, it gets a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html>"
      this.inside = new Promise(resolve => {
        frame.onload = () => {
          const inside = frame.contentWindow
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          inside.importScripts = (...scripts) => Promise.all(scripts.map(script => load(inside, script)))
          load(inside, address).then(() => resolve(inside))
        }
      })
      document.body.append(frame)
    }

    postMessage(data) {
      this.inside.then(inside => inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }

  function load(inside, address) {
    return new Promise((resolve, reject) => {
      const script = inside.document.createElement("script")
      script.src = address
      script.onload = resolve
      script.onerror = () => reject(new Error(`can't load ${address}`))
      inside.document.body.append(script)
    })
  }
}
