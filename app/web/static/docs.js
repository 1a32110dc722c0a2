// Shows openapi.json with Swagger UI. A file of its own, since the page allows no inline script.

// Swagger UI has a dark theme, but leaves it to the page to choose it.
const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();

const description = new URL("openapi.json", location.href).href;
const here = new URL(".", location.href).href.replace(/\/$/, "");

SwaggerUIBundle({
  url: description,
  domNode: document.getElementById("api"),
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // the default sends the address of the description to a stranger
  responseInterceptor: (response) => {
    if (response.url === description && response.ok) {
      // The description names the public address. Requests made here go to where the page came
      // from, which is the same service under whatever name the reader reaches it.
      response.text = JSON.stringify({ ...JSON.parse(response.text), servers: [{ url: here }] });
    }
    return response;
  },
});
