const wrong = document.getElementById("wrong");
if (location.search === "?wrong") wrong.textContent = "没有这个密钥。 There is no such key.";
if (location.pathname === "/sign-in") wrong.textContent = "错误太多，一分钟后再试。 Too many wrong keys; try again in a minute.";
document.forms[0].action += location.hash; // back to the same conversation
const dark = localStorage.getItem("theme");
if (dark) document.documentElement.dataset.theme = dark;
